package nameserver

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/miekg/dns"
	"golang.org/x/tools/txtar"

	"github.com/rota-dns/rota/internal/rota"
)

// TestLookup reads testdata/lookup/*.txtar: "zone NAME" files are zones, "services" lists services (name, then addresses, then
// "down" and the addresses that are), and "cases" holds blocks of a question, "status [aa]" and the records, each with its section.
func TestLookup(t *testing.T) {
	files, err := filepath.Glob("testdata/lookup/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("no test data", err)
	}
	for _, f := range files {
		a, err := txtar.ParseFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var zones []Zone
		var services []rota.Service
		var down []string
		var cases string
		for _, part := range a.Files {
			switch kind, name, _ := strings.Cut(part.Name, " "); kind {
			case "zone":
				zones = append(zones, Zone{Name: rota.MustParseName(name), Records: string(part.Data), File: part.Name})
			case "services":
				for line := range strings.Lines(string(part.Data)) {
					w := strings.Fields(line)
					if w[0] == "down" {
						down = append(down, w[1:]...)
						continue
					}
					s := service(w[0])
					for _, x := range w[1:] {
						if fb, ok := strings.CutPrefix(x, "fallback="); ok {
							s.Safety.OnAllDown, s.Safety.Fallback = rota.OnAllDownFallback, rota.MustParseName(fb)
							continue
						}
						s.Endpoints = append(s.Endpoints, service(w[0], x).Endpoints...)
					}
					services = append(services, s)
				}
			case "cases":
				cases = string(part.Data)
			}
		}
		t.Run(filepath.Base(f), func(t *testing.T) {
			st := stateOf(t, services, down...)
			c := catalogOf(t, st, zones...)
			var got strings.Builder
			for block := range strings.SplitSeq(strings.TrimSpace(cases), "\n\n") {
				q, _, _ := strings.Cut(block, "\n")
				w := strings.Fields(q)
				got.WriteString(render(q, ask(c, st, w[0], w[1], first)))
			}
			if os.Getenv("UPDATE_GOLDEN") != "" {
				for i := range a.Files {
					if a.Files[i].Name == "cases" {
						a.Files[i].Data = []byte(got.String())
					}
				}
				if err := os.WriteFile(f, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			diff(t, "answers", strings.Split(strings.TrimSpace(got.String()), "\n"), strings.Split(strings.TrimSpace(cases), "\n"))
		})
	}
}

func render(q string, a answer) string {
	var b strings.Builder
	b.WriteString(q + "\n  " + dns.RcodeToString[a.rcode])
	if a.aa {
		b.WriteString(" aa")
	}
	b.WriteByte('\n')
	for _, s := range []struct {
		tag string
		rrs []dns.RR
	}{{"  ", a.answer}, {"  authority ", a.authority}, {"  additional ", a.additional}} {
		for _, l := range lines(s.rrs) {
			b.WriteString(s.tag + l + "\n")
		}
	}
	b.WriteByte('\n')
	return b.String()
}
