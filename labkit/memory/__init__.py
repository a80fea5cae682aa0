"""Memory of training: measured (`measure`), simulated (`simulate`), in closed form (`budget`)."""
