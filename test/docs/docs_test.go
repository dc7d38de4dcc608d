// Package docs_test holds the documents to what the program does. Links have to lead somewhere, and what a fence marks is done:
//
//	sh        parsed by bash; every rota, make and script it names has to exist, with the flags it is given
//	console   run: all of a page's console blocks are one session in an empty folder and a network of its own. A line that
//	          begins with "$ " is a command, the lines below it are its whole output. … stands for any text, alone on a line
//	          for any lines. A command that only looks is repeated until its output is right, for half a minute.
//	yaml      a whole configuration, held against `rota validate`; with a file name behind it (```yaml rota.yaml) it is also
//	          written into the session at that point, as is any other fence with a file name
//	text      pictures and excerpts; not checked
package docs_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const root = "../.."

// block is a fenced block of a page.
type block struct {
	page string // from the root
	line int    // of the fence
	lang string
	file string // written under this name in the page's session; empty: not written
	text string
}

func (b block) at() string { return fmt.Sprintf("%s:%d", b.page, b.line) }

func pages(t *testing.T) []string {
	t.Helper()
	out := []string{"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"}
	more, err := filepath.Glob(root + "/docs/*.md")
	if err != nil || len(more) == 0 {
		t.Fatalf("no pages in docs/: %v", err)
	}
	for _, p := range more {
		out = append(out, "docs/"+filepath.Base(p))
	}
	return out
}

func read(t *testing.T, page string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, page))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var known = []string{"sh", "console", "yaml", "text", "ini", "json", "nginx"}

func blocks(t *testing.T, page string) []block {
	t.Helper()
	var out []block
	var in *block
	for i, line := range strings.Split(read(t, page), "\n") {
		fence, isFence := strings.CutPrefix(line, "```")
		switch {
		case isFence && in == nil:
			lang, file, _ := strings.Cut(fence, " ")
			if !slices.Contains(known, lang) {
				t.Errorf("%s:%d: a fence of %q; the test knows %v", page, i+1, lang, known)
			}
			in = &block{page: page, line: i + 1, lang: lang, file: file}
		case isFence:
			out = append(out, *in)
			in = nil
		case in != nil:
			in.text += line + "\n"
		}
	}
	if in != nil {
		t.Errorf("%s: the fence is not closed", in.at())
	}
	return out
}

func each(t *testing.T, lang string, do func(*testing.T, block)) {
	t.Helper()
	n := 0
	for _, p := range pages(t) {
		for _, b := range blocks(t, p) {
			if b.lang == lang {
				n++
				t.Run(b.at(), func(t *testing.T) { do(t, b) })
			}
		}
	}
	if n == 0 {
		t.Errorf("no page has a fence of %q", lang)
	}
}

// program builds rota once.
var program = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "rota-docs-")
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "rota")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", path, "./cmd/rota")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w\n%s", err, out)
	}
	return path, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if path, err := program(); err == nil {
		os.RemoveAll(filepath.Dir(path))
	}
	os.Exit(code)
}

func rota(t *testing.T, args ...string) (string, error) {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	return string(out), err
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	fenced  = regexp.MustCompile("(?ms)^```.*?^```$")
	notSlug = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

func TestLinks(t *testing.T) {
	for _, page := range pages(t) {
		text := fenced.ReplaceAllString(read(t, page), "")
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			to, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(to, "://") || strings.HasPrefix(to, "mailto:") {
				continue
			}
			target := page
			if to != "" {
				target = filepath.Join(filepath.Dir(page), to)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: the link to %s leads nowhere", page, m[1])
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: %s has no heading for #%s; it has %v", page, target, anchor, anchors(read(t, target)))
			}
		}
	}
}

func anchors(text string) []string {
	var out []string
	for _, m := range heading.FindAllStringSubmatch(fenced.ReplaceAllString(text, ""), -1) {
		slug := notSlug.ReplaceAllString(strings.ToLower(strings.TrimSpace(m[1])), "")
		out = append(out, strings.ReplaceAll(slug, " ", "-"))
	}
	return out
}

func TestShell(t *testing.T) {
	each(t, "sh", func(t *testing.T, b block) {
		parse := exec.Command("bash", "-n")
		parse.Stdin = strings.NewReader(b.text)
		if out, err := parse.CombinedOutput(); err != nil {
			t.Fatalf("bash: %s", out)
		}
		for _, c := range commands(b.text) {
			checkCommand(t, c)
		}
	})
}

var separators = regexp.MustCompile(`&&|\|\||[|;&]`)

// commands splits shell text into simple commands, each a list of words.
func commands(text string) [][]string {
	var out [][]string
	text = strings.ReplaceAll(text, "\\\n", " ")
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(" "+line, " #")
		for _, c := range separators.Split(line, -1) {
			words := strings.Fields(strings.NewReplacer("'", "", `"`, "").Replace(c))
			for len(words) > 0 && (words[0] == "sudo" || strings.Contains(words[0], "=")) {
				words = words[1:]
			}
			if len(words) > 0 {
				out = append(out, words)
			}
		}
	}
	return out
}

func checkCommand(t *testing.T, words []string) {
	t.Helper()
	if slices.Equal(words[:min(3, len(words))], []string{"go", "run", "./cmd/rota"}) {
		words = append([]string{"rota"}, words[3:]...)
	}
	switch {
	case filepath.Base(words[0]) == "rota":
		checkRota(t, words[1:])
	case words[0] == "make":
		for _, target := range words[1:] {
			if !strings.Contains(target, "=") && !strings.Contains(read(t, "Makefile"), "\n"+target+":") {
				t.Errorf("the Makefile has no target %s", target)
			}
		}
	case strings.HasPrefix(words[0], "./"):
		if info, err := os.Stat(filepath.Join(root, words[0])); err != nil || info.Mode()&0o111 == 0 {
			t.Errorf("%s is not a program in the repository", words[0])
		}
	}
}

var subcommands = regexp.MustCompile(`(?ms)^(?:Available|Additional) Commands:\n(.*?)\n\n`)

// checkRota holds the verbs and flags of a call against the help of the program.
func checkRota(t *testing.T, args []string) {
	t.Helper()
	var verbs []string
	help := func() string {
		out, err := rota(t, append(slices.Clone(verbs), "--help")...)
		if err != nil {
			t.Fatalf("rota %s --help: %v\n%s", strings.Join(verbs, " "), err, out)
		}
		return out
	}
	text := help()
	rest := args
	for len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
		m := subcommands.FindStringSubmatch(text + "\n\n")
		if m == nil || !regexp.MustCompile(`(?m)^  `+regexp.QuoteMeta(rest[0])+` `).MatchString(m[1]+" ") {
			if len(verbs) == 0 {
				t.Errorf("rota has no verb %q", rest[0])
			}
			break
		}
		verbs, rest = append(verbs, rest[0]), rest[1:]
		text = help()
	}
	for _, a := range rest {
		flag, _, _ := strings.Cut(a, "=")
		if !strings.HasPrefix(flag, "-") || flag == "-" || flag == "--" {
			continue
		}
		if !regexp.MustCompile(`(^|[\s,])` + regexp.QuoteMeta(flag) + `([\s,]|$)`).MatchString(text) {
			t.Errorf("rota %s has no flag %s", strings.Join(verbs, " "), flag)
		}
	}
}

// tsigKey stands where a page speaks of a key; it is nobody's.
const tsigKey = `key "rota" {
	algorithm hmac-sha256;
	secret "bm90IGEgc2VjcmV0LCBvbmx5IGFuIGV4YW1wbGUgISE=";
};
`

func TestConfigurations(t *testing.T) {
	each(t, "yaml", func(t *testing.T, b block) {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "tsig.key"), tsigKey)
		for _, name := range []string{"ops.token", "provider.token", "probe.pw"} {
			write(t, filepath.Join(dir, name), "0123456789abcdef0123456789abcdef\n")
		}
		write(t, filepath.Join(dir, "zones.yaml"), "[{Name: example.org}]\n")
		cert, key := certificate(t)
		write(t, filepath.Join(dir, "ca.crt"), cert)
		write(t, filepath.Join(dir, "ams.crt"), cert)
		write(t, filepath.Join(dir, "ams.key"), key)
		write(t, filepath.Join(dir, "probe.crt"), cert)
		write(t, filepath.Join(dir, "probe.key"), key)
		path := filepath.Join(dir, "rota.yaml")
		write(t, path, strings.ReplaceAll(b.text, "/etc/rota/", dir+"/"))
		if out, err := rota(t, "validate", "--config", path); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}

// certificate makes one that stands for every file of certificates that a page speaks of, the authority's too.
func certificate(t *testing.T) (certPEM, keyPEM string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"ams"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestSessions(t *testing.T) {
	ran := 0
	for _, page := range pages(t) {
		all := blocks(t, page)
		if !slices.ContainsFunc(all, func(b block) bool { return b.lang == "console" }) {
			continue
		}
		ran++
		t.Run(page, func(t *testing.T) {
			s := begin(t)
			for _, b := range all {
				switch {
				case b.file != "":
					write(t, filepath.Join(s.dir, b.file), b.text)
				case b.lang == "console":
					for _, st := range steps(b) {
						s.do(t, st)
					}
				}
			}
		})
	}
	if ran == 0 {
		t.Error("no page has a session")
	}
}

// The explanation in the README is one that the quickstart, which is run, could show.
func TestReadmeExplains(t *testing.T) {
	const command = "rota explain www.example.org"
	var real *regexp.Regexp
	for _, b := range blocks(t, "docs/quickstart.md") {
		if b.lang == "console" {
			for _, st := range steps(b) {
				if st.command == command {
					real = st.pattern()
				}
			}
		}
	}
	if real == nil {
		t.Fatalf("the quickstart never runs %q", command)
	}
	all := blocks(t, "README.md")
	i := slices.IndexFunc(all, func(b block) bool { return b.lang == "sh" && strings.Contains(b.text, command) })
	if i < 0 || i+1 == len(all) || all[i+1].lang != "text" {
		t.Fatalf("the README does not show what %q says", command)
	}
	if !real.MatchString(all[i+1].text) {
		t.Errorf("%s: the README shows\n%s\nwhich is not what the quickstart shows", all[i+1].at(), all[i+1].text)
	}
}

// step is a command of a session and the output it has to have.
type step struct {
	at      string
	command string
	shown   []string // nil: not looked at
}

func steps(b block) []step {
	var out []step
	for i, line := range strings.Split(strings.TrimSuffix(b.text, "\n"), "\n") {
		if c, ok := strings.CutPrefix(line, "$ "); ok {
			out = append(out, step{at: fmt.Sprintf("%s:%d", b.page, b.line+1+i), command: c})
		} else if len(out) > 0 {
			last := &out[len(out)-1]
			if strings.HasSuffix(last.command, "\\") && len(last.shown) == 0 {
				last.command += "\n" + line
			} else {
				last.shown = append(last.shown, line)
			}
		}
	}
	return out
}

// looks reports whether a command changes nothing, so that it may be repeated.
func (s step) looks() bool {
	first := commands(s.command)[0]
	if len(first) > 2 && first[0] == "rota" && first[1] == "cluster" {
		return slices.Contains([]string{"status", "verify", "tokens"}, first[2])
	}
	if first[0] == "rota" && len(first) > 1 {
		return slices.Contains([]string{"status", "get", "explain", "plan", "events", "dig", "check", "validate", "version"}, first[1])
	}
	return slices.Contains([]string{"dig", "curl", "cat", "ls"}, first[0])
}

// pattern is what the whole output has to match, nil when any will do.
func (s step) pattern() *regexp.Regexp {
	if s.shown == nil {
		return nil
	}
	var b strings.Builder
	for _, line := range s.shown {
		if strings.TrimSpace(line) == "…" {
			b.WriteString(`(?:[^\n]*\n)*?`)
			continue
		}
		var words []string
		for _, w := range strings.Fields(line) {
			words = append(words, strings.ReplaceAll(regexp.QuoteMeta(w), "…", `[^\n]*?`))
		}
		b.WriteString(`[ \t]*` + strings.Join(words, `[ \t]+`) + `[ \t]*\n`)
	}
	return regexp.MustCompile(`\A` + b.String() + `\z`)
}

// session is a shell in a network, and a table of processes, of its own: every port is free, and nothing outlives it.
type session struct {
	dir   string
	in    io.Writer
	done  *bufio.Reader
	shell *exec.Cmd
}

func begin(t *testing.T) *session {
	t.Helper()
	path, err := program()
	if err != nil {
		t.Fatal(err)
	}
	s := &session{dir: t.TempDir()}
	s.shell = exec.Command("unshare", "--net", "--pid", "--fork", "--kill-child", "bash", "--noprofile", "--norc")
	if os.Getuid() != 0 {
		s.shell.Args = slices.Insert(s.shell.Args, 1, "--map-root-user")
	}
	s.shell.Dir = s.dir
	s.shell.Env = append(os.Environ(), "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH")+":/usr/sbin:/sbin", "LC_ALL=C.UTF-8",
		"NO_COLOR=1", "HOME="+s.dir)
	in, err := s.shell.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	var stderr bytes.Buffer
	s.shell.Stderr = &stderr
	s.in, s.done = in, bufio.NewReader(out)
	if err := s.shell.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		s.shell.Process.Kill()
		s.shell.Wait()
		if t.Failed() {
			t.Logf("the shell said: %s", stderr.String())
		}
	})
	if out, status := s.run(t, "ip link set lo up"); status != "0" {
		t.Fatalf("no network of its own: %s", out)
	}
	return s
}

// run does a command in the shell and returns its output and status. What it leaves running goes on writing to the same file.
func (s *session) run(t *testing.T, command string) (output, status string) {
	t.Helper()
	log := filepath.Join(s.dir, ".output")
	script := filepath.Join(s.dir, ".command")
	write(t, script, command+"\n")
	if err := os.RemoveAll(log); err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(s.in, "source ./.command >.output 2>&1 </dev/null; echo $?\n")
	type answer struct {
		line string
		err  error
	}
	got := make(chan answer, 1)
	go func() {
		line, err := s.done.ReadString('\n')
		got <- answer{line, err}
	}()
	select {
	case a := <-got:
		if a.err != nil {
			t.Fatalf("the shell is gone after %q: %v", command, a.err)
		}
		text, err := os.ReadFile(log)
		if err != nil {
			t.Fatal(err)
		}
		return string(text), strings.TrimSpace(a.line)
	case <-time.After(2 * time.Minute):
		s.shell.Process.Kill()
		<-got
		text, _ := os.ReadFile(log)
		t.Fatalf("%q does not end; so far:\n%s", command, text)
		return "", ""
	}
}

func (s *session) do(t *testing.T, st step) {
	t.Helper()
	patience := time.Now()
	if st.looks() {
		patience = patience.Add(30 * time.Second)
	}
	want := st.pattern()
	for {
		out, status := s.run(t, st.command)
		if status == "0" && (want == nil || want.MatchString(out)) {
			return
		}
		if time.Now().After(patience) {
			t.Fatalf("%s: $ %s\nexit status %s, shown:\n%s\nthe page has:\n%s\n", st.at, st.command, status, out, strings.Join(st.shown, "\n"))
		}
		time.Sleep(200 * time.Millisecond) // the world outside this process has no virtual time
	}
}

var (
	promised = regexp.MustCompile("`(?:([a-z]+)\\.)?((?:Test|Fuzz|Benchmark)\\w*)(?:/(\\w+))?`")
	function = regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	bracket  = regexp.MustCompile("`publish\\.TestConformance` \\(([^)]+)\\)")
	scenario = regexp.MustCompile(`(?m)^-- (\w+) --$`)
)

// Every test that the promises name exists where they say.
func TestPromisesHaveTests(t *testing.T) {
	found := map[string]bool{} // "room.Test" and "room.Test/scenario"
	for room, dir := range map[string]string{"": "internal", "cmd": "cmd/rota", "docs": "test/docs", "e2e": "test/e2e", "probing": "test/probing"} {
		collect(t, found, room, dir)
	}
	rooms, err := os.ReadDir(filepath.Join(root, "internal"))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rooms {
		if r.IsDir() {
			collect(t, found, r.Name(), "internal/"+r.Name())
		}
	}
	names := promised.FindAllStringSubmatch(read(t, "docs/promises.md"), -1)
	if len(names) < 20 {
		t.Errorf("docs/promises.md names only %d tests", len(names))
	}
	for _, m := range names {
		name := strings.TrimPrefix(m[1]+"."+m[2], ".")
		if m[3] != "" {
			name += "/" + m[3]
		}
		if !found[name] {
			t.Errorf("docs/promises.md names %s, which is nowhere", name)
		}
	}
	scenarios := read(t, "internal/publish/conform_test.go")
	for _, m := range bracket.FindAllStringSubmatch(read(t, "docs/promises.md"), -1) {
		for begin := range strings.SplitSeq(m[1], ", ") {
			if !regexp.MustCompile(`\t\{"` + regexp.QuoteMeta(begin) + `[ "]`).MatchString(scenarios) {
				t.Errorf("docs/promises.md: no scenario of publish.TestConformance begins with %q", begin)
			}
		}
	}
}

func collect(t *testing.T, found map[string]bool, room, dir string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	prefix := strings.TrimPrefix(room+".", ".")
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range function.FindAllSubmatch(text, -1) {
			found[prefix+string(m[1])] = true
		}
	}
	scenarios, err := filepath.Glob(filepath.Join(root, dir, "testdata", "*.txtar"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range scenarios {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range scenario.FindAllSubmatch(text, -1) {
			found[prefix+"TestScenarios/"+string(m[1])] = true
		}
	}
}

// Every key that this version acts on, those with a description in the schema, is in the reference.
func TestEveryKeyIsInTheReference(t *testing.T) {
	out, err := rota(t, "schema")
	if err != nil {
		t.Fatalf("rota schema: %v\n%s", err, out)
	}
	var schema any
	if err := json.Unmarshal([]byte(out), &schema); err != nil {
		t.Fatal(err)
	}
	page := read(t, "docs/config.md")
	for key := range keys(schema) {
		if key != "$schema" && !regexp.MustCompile("[`.{ ]"+regexp.QuoteMeta(key)+"[`.:]").MatchString(page) {
			t.Errorf("docs/config.md says nothing of %s", key)
		}
	}
}

// keys lists the properties with a description anywhere in a schema.
func keys(schema any) map[string]bool {
	out := map[string]bool{}
	switch s := schema.(type) {
	case []any:
		for _, v := range s {
			maps.Copy(out, keys(v))
		}
	case map[string]any:
		for k, v := range s {
			if k == "properties" {
				if ps, ok := v.(map[string]any); ok {
					for name, p := range ps {
						m, ok := p.(map[string]any)
						if text, _ := m["description"].(string); ok && text != "" && !strings.Contains(text, "Not supported yet") {
							out[name] = true
						}
					}
				}
			}
			maps.Copy(out, keys(v))
		}
	}
	return out
}

// The test itself works: each of these is a page that lies.
func TestTheTestBites(t *testing.T) {
	st := step{command: "dig", shown: []string{"a …  c", "…", "end"}}
	for text, want := range map[string]bool{
		"a b c\nend\n": true, "a  x y c\n1\n2\nend\n": true, "a b d\nend\n": false, "a b c\n": false, "a b c\nend\nmore\n": false,
	} {
		if got := st.pattern().MatchString(text); got != want {
			t.Errorf("%q matches: %v", text, got)
		}
	}
	got := commands("FOO=1 sudo rota plan --x | grep 'a b' && ./test/all # rota no\nrota \\\n  run\n")
	want := "[[rota plan --x] [grep a b] [./test/all] [rota run]]"
	if fmt.Sprint(got) != want {
		t.Errorf("commands are %v, want %v", got, want)
	}
	b := block{page: "p", line: 1, text: "$ one \\\n  more\nout\n$ two\n"}
	if got, want := fmt.Sprintf("%q", steps(b)), `[{"p:2" "one \\\n  more" ["out"]} {"p:5" "two" []}]`; got != want {
		t.Errorf("steps are %s, want %s", got, want)
	}
	if got := anchors("# What it is\n```sh\n# no\n```\n## `rota run`, and more\n"); fmt.Sprint(got) != "[what-it-is rota-run-and-more]" {
		t.Errorf("anchors are %q", got)
	}
}
