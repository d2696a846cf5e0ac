"""The files of a study that record its submissions."""
