"""The gateway: edges, proxy core, life cycle and everything an operator touches."""
