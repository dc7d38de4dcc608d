package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rota-dns/rota/internal/config"
	"github.com/rota-dns/rota/internal/rota"
)

// ownPlaces reads what checks name for a node: places that its own configuration names in a check, and no others. What is to be checked
// comes from who leads; without this, that node could have every other one send any of its files to any endpoint.
func ownPlaces(cfg func() *config.Config) func(rota.Place) ([]byte, error) {
	return func(p rota.Place) ([]byte, error) {
		if _, ok := slices.BinarySearch(cfg().Places, p); !ok {
			return nil, fmt.Errorf("%s is read only by nodes whose own configuration names it in a check; write that check into this node's file, too", p)
		}
		return config.ReadPlace(p, config.Options{})
	}
}

// agentSecret is how the names of variables and systemd credentials begin that an agent may send to endpoints: among the others are its own.
const agentSecret = "ROTA_SECRET_"

// agentPlaces reads what checks name for an agent, which has no configuration that could allow it: files in dir, and variables and systemd
// credentials that are named for it. An empty dir allows no file.
func agentPlaces(dir string) func(rota.Place) ([]byte, error) {
	return func(p rota.Place) ([]byte, error) {
		switch form, name, _ := strings.Cut(string(p), ":"); form {
		case "file":
			if dir == "" {
				return nil, fmt.Errorf("this agent reads no file %s; put it into a directory of secrets and start with --secrets DIR", name)
			}
			if !inside(dir, name) {
				return nil, fmt.Errorf("this agent reads files in %s only (--secrets), and %s is not one", dir, name)
			}
		case "env", "credential":
			if !strings.HasPrefix(name, agentSecret) {
				return nil, fmt.Errorf("this agent reads variables and credentials only whose names begin with %s, and %s does not", agentSecret, name)
			}
		}
		return config.ReadPlace(p, config.Options{})
	}
}

// inside reports whether a file is in a directory or below it, once links are followed.
func inside(dir, file string) bool {
	within, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return false
	}
	real, err := filepath.EvalSymlinks(file)
	if err != nil { // who reads it says that it is not there, if it is not there in dir
		if real, err = filepath.EvalSymlinks(filepath.Dir(file)); err != nil {
			return false
		}
	}
	rel, err := filepath.Rel(within, real)
	return err == nil && filepath.IsLocal(rel)
}
