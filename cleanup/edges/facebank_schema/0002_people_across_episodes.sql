-- A show's own counter, so that the number of an unknown person is never given twice.
CREATE TABLE shows (
    show          text PRIMARY KEY,
    last_unknown  integer NOT NULL DEFAULT 0
);
INSERT INTO shows (show) SELECT DISTINCT show FROM people;

-- An unknown person was seen and has no name yet. An alias is another name or an earlier id.
ALTER TABLE people
    ADD COLUMN is_unknown boolean NOT NULL DEFAULT false,
    ADD COLUMN aliases text[] NOT NULL DEFAULT '{}',
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now(),
    ADD FOREIGN KEY (show) REFERENCES shows;

ALTER TABLE seeds
    DROP CONSTRAINT seeds_show_person_id_fkey,
    ADD FOREIGN KEY (show, person_id) REFERENCES people ON DELETE CASCADE ON UPDATE CASCADE,
    ADD COLUMN quality double precision,
    ADD COLUMN landmarks real[],
    ADD COLUMN embed_path text,
    ADD COLUMN display_path text,
    ADD COLUMN original_path text,
    ADD COLUMN is_featured boolean NOT NULL DEFAULT false,
    ADD COLUMN updated_at timestamptz NOT NULL DEFAULT now();
CREATE UNIQUE INDEX one_featured_seed ON seeds (show, person_id) WHERE is_featured;

-- The identities of an episode as they were last written. shares_frames_with: identities of the same episode that are
-- seen together with this one, so they are somebody else.
CREATE TABLE episode_clusters (
    show                text NOT NULL REFERENCES shows,
    ep_id               text NOT NULL,
    identity_id         text NOT NULL,
    model               text NOT NULL,
    dimension           integer NOT NULL,
    centroid            vector NOT NULL,
    sub_centroids       vector[] NOT NULL,
    track_ids           bigint[] NOT NULL,
    n_faces             integer NOT NULL,
    is_solid            boolean NOT NULL,
    is_seen             boolean NOT NULL,
    shares_frames_with  text[] NOT NULL,
    person_id           text,
    source              text NOT NULL CHECK (source IN ('seed', 'person', 'human', 'none')),
    updated_at          timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (show, ep_id, identity_id),
    FOREIGN KEY (show, person_id) REFERENCES people ON UPDATE CASCADE,
    CHECK ((person_id IS NULL) = (source = 'none'))
);
CREATE INDEX clusters_of_person ON episode_clusters (show, person_id);

-- "This is not X": kept by its tracks, which outlive the identity that held them.
CREATE TABLE rejections (
    show       text NOT NULL,
    ep_id      text NOT NULL,
    track_ids  bigint[] NOT NULL,
    person_id  text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (show, ep_id, person_id, track_ids),
    FOREIGN KEY (show, person_id) REFERENCES people ON UPDATE CASCADE ON DELETE CASCADE
);

-- Every assignment, merge and other change: who or what did it, and why. details holds what undoing it needs.
CREATE TABLE events (
    event_id   bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT now(),
    show       text NOT NULL,
    kind       text NOT NULL,
    person_id  text,
    ep_id      text,
    identity_id text,
    actor      text NOT NULL,
    reason     text NOT NULL,
    details    jsonb NOT NULL DEFAULT '{}',
    undone_by  bigint REFERENCES events
);
CREATE INDEX events_of_show ON events (show, event_id);
