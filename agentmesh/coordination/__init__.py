"""Who does it: which agents live here, who holds what, who is alive, and who gives back what the dead held."""
