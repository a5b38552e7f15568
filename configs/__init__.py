"""The flags of train.py, and a YAML file of them for each data set."""
