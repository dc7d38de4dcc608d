package config

func (l *loader) examine(root *node)       {}
func (l *loader) build(root *node) *Config { return &Config{} }
