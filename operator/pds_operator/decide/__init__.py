"""What a round decides: writes, as data, from what is observed and asked for. Pure."""
