package config

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/rota"
)

// ReadPlace reads what is at a place now, as it was read with the configuration that names it: at most 1 MiB, without blanks at either
// end. No error repeats any of it; each names the place.
func ReadPlace(p rota.Place, o Options) ([]byte, error) {
	form, name, _ := strings.Cut(string(p), ":")
	switch {
	case !slices.Contains([]string{"file", "env", "credential"}, form) || name == "":
		return nil, fmt.Errorf("%q is no place: want file:PATH, env:NAME or credential:NAME", p)
	case form == "file" && !filepath.IsAbs(name):
		return nil, fmt.Errorf("%s is no absolute path", p)
	case form == "credential" && name != filepath.Base(name):
		return nil, fmt.Errorf("%s is no name of a credential", p)
	}
	b := &builder{loader: newLoader(o), c: &Config{}}
	c, ok := b.content(place{}, form, form, name, maxPEM)
	if !ok {
		return nil, errors.New(b.problems[0].Message)
	}
	return c.text, nil
}
