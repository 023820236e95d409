"""How fast training is: operations a second and traces."""
