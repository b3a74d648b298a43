"""Skeleton data: reading, cleaning, a memory-mapped store, one-shot protocols and what the encoders are fed.

`sources` of clips (`readers`) -> `store.build_skeleton_store` under a `preprocess.SkeletonPolicy` ->
`store.SkeletonStore` -> `protocols.one_shot_split` -> `feeder.SkeletonDataset`.
"""
