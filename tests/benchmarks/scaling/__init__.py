"""`just bench scaling`: how time grows with each thing that it depends on."""
