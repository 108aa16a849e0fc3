-- What two people look like to a model, measured on photos of people who are known; a model is a file, by its digest.
CREATE TABLE calibrations (
    model         text NOT NULL,
    model_sha256  text NOT NULL,
    strangers     double precision NOT NULL CHECK (strangers >= 0 AND strangers < 1),
    n_people      integer NOT NULL,
    n_photos      integer NOT NULL,
    n_pairs       integer NOT NULL CHECK (n_pairs > 0),
    measured_at   timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (model, model_sha256)
);
