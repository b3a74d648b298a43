"""Paper scale on generated data and random weights: the whole way of a row, from the publishers' files to its table."""
