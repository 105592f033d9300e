"""A benchmark that needs no download: tasks in the paper's four families, made from packages on the user's machine."""
