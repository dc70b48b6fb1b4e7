"""Why a run failed, from its logs: the known failures as data, and the matcher that finds the cause among them."""
