-- The teacher gave a hypothesis. Holds for every run, whether the manifest names it or not.
NOT error
