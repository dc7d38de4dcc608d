package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/rota-dns/rota/internal/rota"
)

// What is seen from outside is asked for by the canonical name and address; what cannot be is said with its reason.
func TestPropagation(t *testing.T) {
	f := night(t)
	o := options(t, f)
	asked := ""
	var fail error
	o.Proof = func() Proof { return Proof{Zones: []ProofZone{{Zone: "example.org"}}} }
	o.Propagation = func(_ context.Context, name rota.Name, gone string) ([]Propagation, error) {
		asked = name.String() + " " + gone
		return []Propagation{{Name: name.Short()}}, fail
	}
	s := server(t, o)
	get := func(path string) (int, string) {
		w := httptest.NewRecorder()
		s.mux.ServeHTTP(w, asUnix(httptest.NewRequest(http.MethodGet, "/api/v1/"+path, nil)))
		return w.Code, w.Body.String()
	}
	if code, text := get("proof"); code != 200 || !strings.Contains(text, "example.org") {
		t.Errorf("proof: %d %s", code, text)
	}
	code, text := get("propagation?name=WWW.example.org&gone=192.0.2.10")
	var l List[Propagation]
	if err := json.Unmarshal([]byte(text), &l); err != nil || code != 200 || len(l.Items) != 1 || asked != "www.example.org. 192.0.2.10" {
		t.Errorf("%d %s, asked %q", code, text, asked)
	}
	for _, c := range []struct {
		path string
		fail error
		want int
		text string
	}{
		{"propagation?name=ww.example.org", ErrUnseen, 404, "did you mean www.example.org"},
		{"propagation?name=a..org", nil, 422, "empty"},
		{"propagation?name=www.example.org&gone=1.2.3", nil, 422, "want an address"},
		{"propagation?name=www.example.org", fmt.Errorf("%w: off", ErrUnseen), 404, "off"},
		{"propagation?name=www.example.org", errors.New("too late"), 503, "too late"},
	} {
		fail = c.fail
		if code, text := get(c.path); code != c.want || !strings.Contains(text, c.text) {
			t.Errorf("%s: %d %s, want %d with %q", c.path, code, text, c.want, c.text)
		}
	}
	o.Proof, o.Propagation = nil, nil
	s = server(t, o)
	for _, path := range []string{"proof", "propagation?name=www.example.org"} {
		if code, text := get(path); code != 404 {
			t.Errorf("%s where nothing is watched: %d %s", path, code, text)
		}
	}
}
