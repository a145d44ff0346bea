-- Memory by meaning: vectors of entries, each of one model. One without its vector is owed it.
CREATE TABLE mesh.vectors (
	memory_id UUID NOT NULL,
	model TEXT NOT NULL,
	tenant_id TEXT NOT NULL,
	context_id TEXT NOT NULL,
	vector REAL[],
	dims INTEGER,
	tries INTEGER DEFAULT '0' NOT NULL,
	error JSONB,
	wake_at TIMESTAMP WITH TIME ZONE DEFAULT mesh.mesh_now() NOT NULL,
	PRIMARY KEY (memory_id, model),
	FOREIGN KEY(memory_id) REFERENCES mesh.memory (id) ON DELETE CASCADE
);
-- Numbers do not compress; trying to costs every search.
ALTER TABLE mesh.vectors ALTER COLUMN vector SET STORAGE EXTERNAL;
CREATE INDEX vectors_owed ON mesh.vectors (model, wake_at) WHERE vector IS NULL;
