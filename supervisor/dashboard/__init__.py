"""Pages over the stored facts, in a process of its own: what runs do, why they wait, and the verbs that free them."""

PORT = 8577  # where nobody says another one
