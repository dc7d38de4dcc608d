package raftadmin

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"unicode"
)

// label returns the id under which a server is shown: its name, unless that could mean another server as well.
func label(servers []Server, s Server) string {
	if s.Name == "" || slices.ContainsFunc(servers, func(o Server) bool { return o.ID != s.ID && (o.Name == s.Name || o.ID == s.Name) }) {
		return s.ID
	}
	return s.Name
}

// find returns the server that has the id, or else the name.
func find(servers []Server, key string) (Server, error) {
	if i := slices.IndexFunc(servers, func(s Server) bool { return s.ID == key }); i >= 0 {
		return servers[i], nil
	}
	var named []Server
	var all, ids []string
	for _, s := range servers {
		all = append(all, label(servers, s))
		if s.Name == key {
			named, ids = append(named, s), append(ids, s.ID)
		}
	}
	switch len(named) {
	case 0:
		return Server{}, fmt.Errorf("no node of this cluster is called %q; its nodes are: %s", key, cmp.Or(strings.Join(all, ", "), "none"))
	case 1:
		return named[0], nil
	}
	return Server{}, fmt.Errorf("%d nodes are called %q; say which by its id: %s", len(named), key, strings.Join(ids, ", "))
}

// maxWord bounds an id and an address, in bytes.
const maxWord = 255

// word refuses what cannot be a name, an id or an address.
func word(what, s string) error {
	if s == "" || len(s) > maxWord || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsGraphic(r) || unicode.IsSpace(r) }) {
		return fmt.Errorf("%s: want 1 to %d bytes without spaces", what, maxWord)
	}
	return nil
}

// newcomer refuses what cannot be a node and its address.
func newcomer(id, address string) error {
	if err := errors.Join(word("ID", id), word("ADDRESS", address)); err != nil {
		return err
	}
	if host, port, err := net.SplitHostPort(address); err != nil || host == "" || port == "" {
		return fmt.Errorf("ADDRESS %q: want HOST:PORT, the cluster port of the node", address)
	}
	return nil
}
