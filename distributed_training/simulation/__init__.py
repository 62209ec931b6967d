"""The swarm simulator: many nodes in one process, on a virtual clock, over modelled links, with seeded faults."""
