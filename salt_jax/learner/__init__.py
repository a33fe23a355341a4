"""The pure part of training: state, advantages, geometry, one update."""
