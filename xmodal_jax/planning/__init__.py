"""`xmodal plan`: compile the real train step for devices that are not there, and say what it will cost on them."""
