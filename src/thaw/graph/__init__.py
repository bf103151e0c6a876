"""A trained network as a short list of inference operations: what all later steps share."""
