"""The files of others, in and out."""
