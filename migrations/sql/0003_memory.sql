-- Memory by hand: why a person wrote an entry.
ALTER TABLE mesh.memory ADD COLUMN reason TEXT;
