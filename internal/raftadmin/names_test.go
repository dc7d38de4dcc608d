package raftadmin

import (
	"strings"
	"testing"
)

func TestNames(t *testing.T) {
	servers := []Server{
		{ID: "1a", Name: "ams"}, // unique
		{ID: "2b", Name: "fra"}, // two of them
		{ID: "3c", Name: "fra"},
		{ID: "4d"},             // never said its name
		{ID: "5e", Name: "1a"}, // the id of another
		{ID: "6f", Name: "6f"},
	}
	for i, want := range []string{"ams", "2b", "3c", "4d", "5e", "6f"} {
		if got := label(servers, servers[i]); got != want {
			t.Errorf("%+v is shown as %q, want %q", servers[i], got, want)
		}
		found, err := find(servers, want)
		if err != nil || found != servers[i] {
			t.Errorf("what is shown as %q is found as %+v, %v", want, found, err)
		}
	}
	for _, c := range []struct{ key, id, err string }{
		{"1a", "1a", ""},
		{"5e", "5e", ""},
		{"fra", "", `2 nodes are called "fra"; say which by its id: 2b, 3c`},
		{"nyc", "", `no node of this cluster is called "nyc"; its nodes are: ams, 2b, 3c, 4d, 5e, 6f`},
	} {
		got, err := find(servers, c.key)
		switch {
		case c.err == "" && (err != nil || got.ID != c.id):
			t.Errorf("%q is %q, %v; want %q", c.key, got.ID, err, c.id)
		case c.err != "" && (err == nil || err.Error() != c.err):
			t.Errorf("%q: %v, want %s", c.key, err, c.err)
		}
	}
	if _, err := find(nil, "x"); err == nil || !strings.HasSuffix(err.Error(), "its nodes are: none") {
		t.Error(err)
	}
}

func TestNewcomer(t *testing.T) {
	for _, c := range []struct {
		id, address string
		ok          bool
	}{
		{"fra", "10.0.0.2:7946", true},
		{"90aa", "[2001:db8::2]:7946", true},
		{"identifier_2", "localhost:3650", true},
		{"", "localhost:3650", false},
		{"fra", "", false},
		{"fra", "10.0.0.2", false},
		{"fra", ":7946", false},
		{"fra", "10.0.0.2:", false},
		{"fra", "10.0.0.2:79\n46", false},
		{"f ra", "10.0.0.2:7946", false},
		{"fra\x1b[2J", "10.0.0.2:7946", false},
		{strings.Repeat("f", maxWord), "10.0.0.2:7946", true},
		{strings.Repeat("f", maxWord+1), "10.0.0.2:7946", false},
	} {
		if err := newcomer(c.id, c.address); (err == nil) != c.ok {
			t.Errorf("%.20q at %q: %v", c.id, c.address, err)
		}
	}
}
