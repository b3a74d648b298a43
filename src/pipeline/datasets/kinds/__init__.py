"""The kinds of data set, a file each; `registry` names them."""
