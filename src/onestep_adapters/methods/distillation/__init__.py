"""Methods that regress onto the trajectories or the samples of a teacher."""
