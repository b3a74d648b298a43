"""Ray on one machine or many: a shared cluster with a queue, or one for a job; it knows nothing of training."""
