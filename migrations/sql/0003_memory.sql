-- Memory: why a person wrote an entry, and when it is to be forgotten.
ALTER TABLE mesh.memory ADD COLUMN reason TEXT, ADD COLUMN forget_at TIMESTAMP WITH TIME ZONE;
CREATE INDEX memory_forget ON mesh.memory (forget_at) WHERE forget_at IS NOT NULL;
