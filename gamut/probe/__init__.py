"""What a backbone knows of a labelled set: during its pretraining, beside it, and of any checkpoint afterwards."""
