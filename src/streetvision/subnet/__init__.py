"""The NATIX StreetVision subnet: the miner folder, its check, the reward."""
