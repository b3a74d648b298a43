"""Poses from videos: 2D joints of up to a few persons, frame by frame, for skeleton data sets.

`estimator` opens a backend (`blazepose`, `rtmpose`, or a class of one's own) -> `tracking` joins the persons of the
frames -> `layouts` makes the joints of the wanted skeleton -> `extract` does so for many videos and writes a folder
that skeleton data sets read (`format: poses`).
"""
