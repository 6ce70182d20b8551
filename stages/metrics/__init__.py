"""Metrics of pictures: what an evaluation asks for (`spec`), what is read of each picture (`features`, over the
networks of `extractors`), and the numbers made of the readings (`score`).

Of videos: `video_readings` over the networks of `video_extractors` (`i3d`, `raft`, `motion_net`), by the rules of
`videos`. `convert` brings published weights into safetensors.

The statistics are float64 and know nothing of pictures: `frechet`, `kid`, `inception_score`, `clip_score`,
`bootstrap`. Every draw is from a seed, every number carries its counts and its interval.
"""
