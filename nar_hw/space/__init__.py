"""What may be searched: the slots of a network, the operators that may stand in them, and what they cost."""
