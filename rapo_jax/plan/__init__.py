"""The stage `plan`: what a run needs on chips of a given kind, estimated without those chips."""
