"""The kinds of task, a folder each; `registry` names them."""
