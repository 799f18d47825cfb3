"""What a run needs of a machine and of a cluster, each looked at by itself."""
