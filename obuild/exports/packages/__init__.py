"""Which packages a layer has, from the databases of their managers."""
