CREATE EXTENSION IF NOT EXISTS vector;

CREATE TABLE people (
    show        text NOT NULL,
    person_id   text NOT NULL,
    name        text NOT NULL,
    created_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (show, person_id)
);

-- The dimension differs from model to model, so the column has none; a scan reads one show and one model at a time.
CREATE TABLE seeds (
    seed_id       uuid PRIMARY KEY DEFAULT gen_random_uuid(),
    show          text NOT NULL,
    person_id     text NOT NULL,
    image_sha256  text NOT NULL,
    image_name    text NOT NULL,
    model         text NOT NULL,
    model_sha256  text NOT NULL,
    dimension     integer NOT NULL,
    embedding     vector NOT NULL,
    confidence    double precision NOT NULL,
    created_at    timestamptz NOT NULL DEFAULT now(),
    FOREIGN KEY (show, person_id) REFERENCES people ON DELETE CASCADE,
    UNIQUE (show, person_id, image_sha256, model)
);

CREATE INDEX seeds_of_show ON seeds (show, model);
