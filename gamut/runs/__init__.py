"""What lies in a folder of runs, read from the files alone: runs, checkpoints, feature caches, exported weights."""
