"""DemoFusion (arXiv:2311.16973): the method and its views of a canvas."""
