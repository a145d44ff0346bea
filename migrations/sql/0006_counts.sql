-- What workers count of themselves, told with their beats.
ALTER TABLE mesh.workers ADD COLUMN counts JSONB NOT NULL DEFAULT '{}';
