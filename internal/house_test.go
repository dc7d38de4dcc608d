// Package internal_test keeps the rules of the house: what each package may import and why, and what its code has to look like.
package internal_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rota-dns/rota"

// hub is all that internal/rota may import, with the reason. It decides; whatever could touch the world or a clock is not here.
var hub = map[string]string{
	"cmp":             "sorts",
	"crypto/sha256":   "a fingerprint of targets that no configuration can forge",
	"encoding/binary": "packed reports",
	"encoding/hex":    "fingerprints as text",
	"encoding/json":   "whether text is JSON, and what its strings mean",
	"errors":          "values",
	"fmt":             "text",
	"hash/fnv":        "offsets and shares that every process computes alike",
	"hash/maphash":    "the persistent map's hash; no order that depends on it may be seen",
	"iter":            "walks",
	"maps":            "walks",
	"math":            "shares",
	"math/bits":       "the persistent map's nodes",
	"net/netip":       "addresses, as values",
	"path":            "patterns over names",
	"slices":          "sorts",
	"sort":            "sorts",
	"strconv":         "text",
	"strings":         "text",
	"time":            "time as an argument; see clock",
	"unicode":         "text",
	"unicode/utf8":    "text",
}

// clock lists what the hub may not use of package time: time comes from the event, so that a replay gives the same state.
var clock = map[string]string{
	"Now": "reads the clock", "Since": "reads the clock", "Until": "reads the clock", "Sleep": "waits", "After": "waits",
	"AfterFunc": "waits", "NewTimer": "waits", "NewTicker": "waits", "Tick": "waits",
	"LoadLocation": "reads files", "Local": "depends on the machine",
}

// forbidden lists what nobody imports, with the reason and who may do it all the same. A module stands for all its packages, a
// package of the standard library for itself.
var forbidden = map[string]struct {
	reason string
	but    []string // directories
}{
	"net/rpc":                       {"calls between nodes are typed events and reports", nil},
	"log":                           {"log/slog is passed in", []string{"internal/cluster"}}, // raft's logger interface names *log.Logger
	"io/ioutil":                     {"os and io have it", nil},
	"math/rand":                     {"math/rand/v2 has it", nil},
	"plugin":                        {"one static binary", nil},
	"os/exec":                       {"the daemon's processes have a group, a time limit and bounds that internal/process gives them; peers and tests start their own", []string{"internal/process", "internal/peers"}},
	"github.com/stretchr/testify":   {"standard testing and go-cmp", nil},
	"github.com/miekg/dns":          {"the hub and the log of events know no DNS library; of the probes one kind asks name servers", []string{"internal/probe", "internal/publish", "internal/witness", "internal/nameserver", "internal/config", "internal/peers", "internal/sim", "cmd/rota"}},
	"github.com/hashicorp/raft":     {"order is internal/cluster's business", []string{"internal/cluster", "internal/sim"}},
	"github.com/spf13/cobra":        {"the command line is cmd/rota's business", []string{"cmd/rota"}},
	"go.yaml.in/yaml/v4":            {"text becomes values in internal/config; cmd/rota prints; a mock's zones are a YAML file", []string{"internal/config", "internal/publish", "cmd/rota"}},
	"github.com/aws/aws-sdk-go-v2":  {"providers are internal/publish's business", []string{"internal/publish"}},
	"github.com/danielgtaylor/huma": {"HTTP is internal/api's business", []string{"internal/api"}},
	"google.golang.org/grpc":        {"nodes and agents speak over internal/link's port; gRPC is for the stock raftadmin", []string{"internal/raftadmin"}},
	"github.com/Jille/raftadmin":    {"the stock raftadmin is internal/raftadmin's business", []string{"internal/raftadmin"}},
	"github.com/libdns/libdns":      {"providers of libdns are a way to publish", []string{"internal/publish"}},
}

// bare rooms import no module at all, with the reason.
var bare = map[string]string{
	"internal/link": "who may come in is decided with the standard library's TLS alone; raft's stream is matched by its shape",
}

// testOnly packages exist for tests; a program that imports one would carry its fakes.
var testOnly = map[string]string{
	module + "/internal/peers": "starts real name servers and web servers",
	module + "/internal/sim":   "fakes the world",
}

// narrow rooms import only these modules beside the standard library and internal/rota, with the reason.
var narrow = map[string]struct {
	reason  string
	modules []string
}{
	"agent": {
		"talks HTTP over connections and identities that are given to it; probing, raft and the cluster's port are wired by cmd/rota",
		[]string{"github.com/cenkalti/backoff/v5", "golang.org/x/net", "golang.org/x/sync"},
	},
	"raftadmin": {
		"speaks the stock raftadmin's protocol about a Node that is given to it; raft itself is wired by cmd/rota",
		[]string{"github.com/Jille/raftadmin/proto", "golang.org/x/net/netutil", "golang.org/x/sync", "google.golang.org/grpc"},
	},
}

// file is one parsed Go file of the module.
type file struct {
	name string // slash-separated, from the module's root
	dir  string
	test bool
	ast  *ast.File
}

func (f file) imports() []string {
	var out []string
	for _, i := range f.ast.Imports {
		p, err := strconv.Unquote(i.Path.Value)
		if err == nil {
			out = append(out, p)
		}
	}
	return out
}

// room returns the room under internal/ that a directory or an import path belongs to, or "".
func room(p string) string {
	p = strings.TrimPrefix(p, module+"/")
	rest, ok := strings.CutPrefix(p, "internal/")
	if !ok {
		return ""
	}
	r, _, _ := strings.Cut(rest, "/")
	return r
}

func source(t *testing.T) ([]file, *token.FileSet) {
	t.Helper()
	fset := token.NewFileSet()
	var files []file
	err := filepath.WalkDir("..", func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name := filepath.ToSlash(strings.TrimPrefix(filepath.Clean(p), ".."+string(filepath.Separator)))
		if d.IsDir() {
			if base := d.Name(); p != ".." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "tools" || base == "dist") {
				return filepath.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(fset, p, nil, parser.ParseComments|parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		files = append(files, file{name: name, dir: path.Dir(name), test: strings.HasSuffix(name, "_test.go"), ast: parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(files) < 10 {
		t.Fatalf("found only %d Go files: is this the module's root?", len(files))
	}
	return files, fset
}

func within(dir string, of []string) bool {
	return slices.ContainsFunc(of, func(o string) bool { return dir == o || strings.HasPrefix(dir, o+"/") })
}

// The star: the hub imports no one's world, rooms know the hub and not each other, and only the command knows them all.
func TestImportLaw(t *testing.T) {
	files, _ := source(t)
	for _, f := range files {
		for _, imp := range f.imports() {
			if bad := breaks(f, imp); bad != "" {
				t.Errorf("%s imports %s: %s", f.name, imp, bad)
			}
		}
	}
}

// breaks returns the reason why a file may not import a package, or "".
func breaks(f file, imp string) string {
	for prefix, rule := range forbidden {
		if (imp == prefix || strings.Contains(prefix, ".") && strings.HasPrefix(imp, prefix+"/")) && !within(f.dir, rule.but) && !(f.test && prefix != "github.com/stretchr/testify") {
			return rule.reason
		}
	}
	if strings.HasPrefix(imp, module+"/cmd/") {
		return "nothing imports a command"
	}
	if reason, ok := testOnly[imp]; ok && !f.test && f.dir != strings.TrimPrefix(imp, module+"/") {
		return "only tests may: it " + reason
	}
	if reason, ok := bare[f.dir]; ok && !f.test && strings.Contains(strings.SplitN(imp, "/", 2)[0], ".") && !strings.HasPrefix(imp, module+"/") {
		return reason
	}
	if f.dir == "internal/rota" && !f.test {
		if _, ok := hub[imp]; !ok {
			return "the hub decides over values; it imports only " + strings.Join(slices.Sorted(maps.Keys(hub)), ", ")
		}
	}
	mine, theirs := room(f.dir), room(imp)
	if n, ok := narrow[mine]; ok && !f.test && theirs == "" && strings.Contains(strings.Split(imp, "/")[0], ".") && !within(imp, n.modules) {
		return n.reason
	}
	switch {
	case mine == "" || theirs == "" || mine == theirs || theirs == "rota":
		return ""
	case mine == "sim":
		return "" // the simulation wires the rooms, as cmd/rota does
	case f.test && testOnly[module+"/internal/"+theirs] != "":
		return ""
	}
	return "a room knows internal/rota and no other room; cmd/rota wires them"
}

func TestHubHasNoClock(t *testing.T) {
	files, fset := source(t)
	for _, f := range files {
		if f.dir != "internal/rota" || f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if reason := clock[n.Sel.Name]; ok && x.Name == "time" && reason != "" {
					t.Errorf("%v: time.%s %s; time is an argument here", fset.Position(n.Pos()), n.Sel.Name, reason)
				}
			case *ast.GoStmt:
				t.Errorf("%v: a goroutine; the hub is pure functions over values", fset.Position(n.Pos()))
			case *ast.ChanType:
				t.Errorf("%v: a channel; the hub is pure functions over values", fset.Position(n.Pos()))
			case *ast.ImportSpec:
				if n.Name != nil {
					t.Errorf("%v: renamed import, which would hide what is used of it", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// Every package opens with a paragraph that says what it is for.
func TestPackagesAreDescribed(t *testing.T) {
	files, _ := source(t)
	doc := map[string]int{}
	for _, f := range files {
		if f.test {
			continue
		}
		doc[f.dir] += len(f.ast.Doc.Text())
	}
	for dir, n := range doc {
		if n < 80 {
			t.Errorf("package %s has no paragraph above its package clause (%d characters): say what it is for and what it leaves to others", dir, n)
		}
	}
}

// Every exported name outside tests has a comment that begins with it, or stands in a group that has one.
func TestExportedNamesAreDescribed(t *testing.T) {
	files, fset := source(t)
	for _, f := range files {
		if f.test {
			continue
		}
		for _, decl := range f.ast.Decls {
			switch d := decl.(type) {
			case *ast.FuncDecl:
				if d.Name.IsExported() && exportedReceiver(d) && !wellKnown[d.Name.Name] && d.Doc.Text() == "" {
					t.Errorf("%v: %s has no comment", fset.Position(d.Pos()), d.Name.Name)
				}
			case *ast.GenDecl:
				for _, spec := range d.Specs {
					switch s := spec.(type) {
					case *ast.TypeSpec:
						if s.Name.IsExported() && d.Doc.Text() == "" && s.Doc.Text() == "" {
							t.Errorf("%v: type %s has no comment", fset.Position(s.Pos()), s.Name.Name)
						}
					case *ast.ValueSpec:
						if s.Names[0].IsExported() && d.Doc.Text() == "" && s.Doc.Text() == "" && s.Comment.Text() == "" {
							t.Errorf("%v: %s has no comment", fset.Position(s.Pos()), s.Names[0].Name)
						}
					}
				}
			}
		}
	}
}

// wellKnown methods say by their name what they do, wherever they are.
var wellKnown = map[string]bool{"String": true, "Error": true, "Unwrap": true, "Is": true, "Len": true, "Less": true, "Swap": true}

func exportedReceiver(d *ast.FuncDecl) bool {
	if d.Recv == nil {
		return true
	}
	expr := d.Recv.List[0].Type
	for {
		switch e := expr.(type) {
		case *ast.StarExpr:
			expr = e.X
		case *ast.IndexExpr:
			expr = e.X
		case *ast.IndexListExpr:
			expr = e.X
		case *ast.Ident:
			return e.IsExported()
		default:
			return true
		}
	}
}

var unfinished = regexp.MustCompile(`\b(TODO|FIXME|XXX|HACK)\b`)

// What is not done is an issue, not a comment.
func TestNothingIsLeftForLater(t *testing.T) {
	files, fset := source(t)
	for _, f := range files {
		for _, group := range f.ast.Comments {
			for _, c := range group.List {
				if m := unfinished.FindString(c.Text); m != "" {
					t.Errorf("%v: a comment says %s", fset.Position(c.Pos()), m)
				}
			}
		}
	}
}

// netip addresses are comparable values with a zone; net.IP is a slice with two forms of the same address. Where a library asks for
// a net.IP it is made in place by AsSlice.
func TestAddressesAreNetip(t *testing.T) {
	files, fset := source(t)
	old := map[string]bool{"IP": true, "ParseIP": true, "IPNet": true, "ParseCIDR": true, "IPv4": true, "IPMask": true}
	for _, f := range files {
		if f.test {
			continue
		}
		ast.Inspect(f.ast, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := s.X.(*ast.Ident); ok && x.Name == "net" && old[s.Sel.Name] {
					t.Errorf("%v: net.%s; use net/netip", fset.Position(s.Pos()), s.Sel.Name)
				}
			}
			return true
		})
	}
}

// Registration by init hides what is wired where. Tables are literals, and main wires.
func TestNoInit(t *testing.T) {
	files, fset := source(t)
	for _, f := range files {
		for _, decl := range f.ast.Decls {
			if d, ok := decl.(*ast.FuncDecl); ok && d.Recv == nil && d.Name.Name == "init" {
				t.Errorf("%v: an init function", fset.Position(d.Pos()))
			}
		}
	}
}

// The law itself works: each of these breaks it.
func TestImportLawBites(t *testing.T) {
	for _, c := range []struct{ file, imports string }{
		{"internal/rota/state.go", "net"},
		{"internal/rota/state.go", "log/slog"},
		{"internal/rota/state.go", "github.com/miekg/dns"},
		{"internal/rota/state.go", module + "/internal/probe"},
		{"internal/probe/http.go", module + "/internal/publish"},
		{"internal/probe/http_test.go", module + "/internal/publish"},
		{"internal/config/migrate/gatus.go", module + "/internal/publish"},
		{"internal/api/api.go", module + "/cmd/rota"},
		{"cmd/rota/main.go", module + "/internal/peers"},
		{"internal/publish/publish.go", module + "/internal/peers"},
		{"internal/publish/publish.go", "github.com/hashicorp/raft"},
		{"internal/publish/publish.go", "os/exec"},
		{"internal/publish/publish_test.go", "github.com/stretchr/testify/assert"},
		{"internal/publish/exec.go", module + "/internal/process"},
		{"internal/publish/publish.go", "log"},
		{"internal/link/port.go", "github.com/hashicorp/raft"},
		{"internal/link/port.go", "golang.org/x/sync/errgroup"},
		{"internal/link/port.go", module + "/internal/cluster"},
		{"internal/agent/healthd.go", module + "/internal/probe"},
		{"internal/agent/healthd.go", "github.com/prometheus/client_golang/prometheus"},
		{"internal/raftadmin/service.go", "github.com/hashicorp/raft"},
		{"internal/raftadmin/service.go", "github.com/Jille/raftadmin"},
		{"internal/raftadmin/service.go", module + "/internal/cluster"},
		{"internal/cluster/node.go", "google.golang.org/grpc"},
		{"cmd/rota/run.go", "github.com/Jille/raftadmin/proto"},
		{"cmd/rota/backends.go", "github.com/aws/aws-sdk-go-v2/config"},
	} {
		f := file{name: c.file, dir: path.Dir(c.file), test: strings.HasSuffix(c.file, "_test.go")}
		if breaks(f, c.imports) == "" {
			t.Errorf("%s may import %s", c.file, c.imports)
		}
	}
	for _, c := range []struct{ file, imports string }{
		{"internal/rota/state_test.go", "testing"},
		{"internal/probe/http.go", module + "/internal/rota"},
		{"internal/publish/bind_test.go", module + "/internal/peers"},
		{"internal/config/config.go", module + "/internal/config/migrate"},
		{"cmd/rota/main.go", module + "/internal/publish"},
		{"internal/publish/publish.go", "github.com/miekg/dns"},
		{"internal/publish/publish.go", "log/slog"},
		{"internal/link/port.go", "crypto/tls"},
		{"internal/link/port.go", module + "/internal/rota"},
		{"internal/link/raft_test.go", "github.com/hashicorp/raft"},
		{"internal/agent/healthd.go", "golang.org/x/net/netutil"},
		{"internal/agent/healthd.go", module + "/internal/rota"},
		{"internal/raftadmin/service.go", "github.com/Jille/raftadmin/proto"},
		{"internal/raftadmin/service.go", "google.golang.org/grpc/codes"},
	} {
		f := file{name: c.file, dir: path.Dir(c.file), test: strings.HasSuffix(c.file, "_test.go")}
		if bad := breaks(f, c.imports); bad != "" {
			t.Errorf("%s may not import %s: %s", c.file, c.imports, bad)
		}
	}
}
