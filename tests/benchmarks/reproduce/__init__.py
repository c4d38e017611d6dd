"""`just reproduce`: every score that the project publishes of its demo, measured again."""
