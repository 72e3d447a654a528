-- Whether some process of the server has its signing key: nobody else may make a first one then.
ALTER TABLE server ADD COLUMN has_key boolean NOT NULL DEFAULT false;
