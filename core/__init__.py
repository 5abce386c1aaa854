"""The ground floor: what training, conversion, evaluation, serving and the command line share."""
