// The acl owns policies and tokens: what they may say, what they mean, and who a
// request is by the secret that it carries. It also says as whom the jobs
// of a node may run, and which addresses they may reach.
//
// Rules that always hold:
//
//  1. What no policy grants is denied; no rule takes away what another grants.
//  2. A path is that of a route with its names escaped, so that no name can
//     reach over a slash into another path.
//  3. To match a path takes time linear in the lengths of path and pattern.
//  4. A secret is in memory while it is made or compared, and nowhere on disk:
//     what is stored is its SHA-256, which for 256 random bits needs no salt.
package main

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"
)

const (
	policyNameBytesMax = 255
	policyBytesMax     = 64_000 // of its JSON, rules included
	policyPathBytesMax = 1_500  // of one path: the longest job name, and what may stand around it
	policyStarsMax     = 8      // in one path; nobody can foresee what more would match

	tokenBytesMax    = 16_000 // of the JSON that makes one
	tokenPoliciesMax = 32     // they are read with every request
	tokenAgeMax      = 10 * 365 * 24 * time.Hour
	secretBytes      = 32 // random ones: to look up a guess is all that it costs, so guesses are counted and not limited
)

// What a route asks of its caller. The first five are what a policy can grant.
const (
	mayCreate = "create"
	mayRead   = "read"
	mayUpdate = "update"
	mayDelete = "delete"
	mayList   = "list"

	mayStoreJob = "store" // a job: create or update on /v1/jobs, or update on the job
	mayListJobs = "jobs"  // those jobs that the caller may read or list
	anyToken    = "any"   // nothing but a token
	noToken     = "none"  // not even that
)

// capabilities are what a policy can grant on a path.
var capabilities = []string{mayCreate, mayRead, mayUpdate, mayDelete, mayList}

// errBuiltIn is returned for a change of a policy that belfry brings itself.
const errBuiltIn = refusal("the policies admin, operator and viewer are built in and cannot be changed; choose another name")

// A policy says what its bearers may do. Its fields are named as in Dkron.
type policy struct {
	Name  string `json:"Name"`
	Rules string `json:"Rules"` // JSON of policyRules, kept as it was written
}

// policyRules grant capabilities on paths of the API, in which "*" matches
// within a segment and "**", at the end, any rest.
type policyRules struct {
	Path map[string]struct {
		Capabilities []string `json:"capabilities"`
	} `json:"path"`
}

// decodePolicy reads the policy called name as clients send it. What it does
// not know it refuses: a rule that is overlooked would grant less, or more,
// than its author meant. No body, which upstream's document does not have, is a
// policy that grants nothing, for one that is new. The error is one sentence that names the field.
func decodePolicy(name string, doc []byte) (policy, error) {
	if len(doc) == 0 {
		doc = []byte(`{"Rules": "{}"}`)
	}
	var p policy
	if err := decodeStrict(doc, &p); err != nil {
		return policy{}, fmt.Errorf("the body is no policy: %w", err)
	}
	if p.Name != "" && p.Name != name {
		return policy{}, fmt.Errorf("Name: %q is not the %q of the path", p.Name, name)
	}
	p.Name = name
	return p, p.validate()
}

func (p policy) validate() error {
	if p.Name == "" || len(p.Name) > policyNameBytesMax || strings.ContainsFunc(p.Name, unicode.IsControl) {
		return fmt.Errorf("Name: must have 1 to %d bytes and no control characters", policyNameBytesMax)
	}
	var rules policyRules
	if err := decodeStrict([]byte(p.Rules), &rules); err != nil {
		return fmt.Errorf("Rules: must be the text of a JSON object such as {\"path\": {\"/v1/jobs/*\": {\"capabilities\": [\"read\"]}}}: %w", err)
	}
	for _, path := range sortedKeys(rules.Path) {
		if err := checkGlob(path); err != nil {
			return fmt.Errorf("Rules: the path %q %w", path, err)
		}
		for _, c := range rules.Path[path].Capabilities {
			if !slices.Contains(capabilities, c) {
				return fmt.Errorf("Rules: %q on %q is no capability, want one of %s", c, path, strings.Join(capabilities, ", "))
			}
		}
	}
	return nil
}

// checkGlob says what is wrong with a path of a policy. The characters that
// other languages of patterns give a meaning are refused: here they would mean
// themselves, and no path has them.
func checkGlob(path string) error {
	stars, rest := strings.TrimSuffix(path, "**"), strings.HasSuffix(path, "**")
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("must begin with a slash, as \"/v1/jobs/*\"")
	case len(path) > policyPathBytesMax:
		return fmt.Errorf("must not be longer than %d bytes", policyPathBytesMax)
	case strings.ContainsAny(path, "?[]{}\\") || strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("must consist of letters, digits, slashes and stars; write other characters as in a URL")
	case strings.Contains(stars, "**") || rest && strings.HasSuffix(stars, "*"):
		return errors.New("may have ** at its end only")
	case strings.Count(path, "*") > policyStarsMax:
		return fmt.Errorf("must not have more than %d stars", policyStarsMax)
	}
	return nil
}

// checkPaths refuses a policy with a path that means none of the API's: its
// author meant another. The API's are paths of routes, with {…} where names stand.
func (p policy) checkPaths(api []string) error {
	var rules policyRules
	if err := json.Unmarshal([]byte(p.Rules), &rules); err != nil {
		return err
	}
	for _, path := range sortedKeys(rules.Path) {
		if !slices.ContainsFunc(api, func(known string) bool { return meansPath(path, known) }) {
			return fmt.Errorf("Rules: the path %q is none of the API's, so it would grant nothing; jobs are /v1/jobs/{name}, all of them /v1/jobs/*, and what is below a job /v1/jobs/{name}/**", path)
		}
	}
	return nil
}

// meansPath reports whether a path of a policy can mean a path with some names
// in the places of {…}: those that it has there itself, if they can be names.
func meansPath(glob, known string) bool {
	globs := strings.Split(glob, "/")
	segments := strings.Split(known, "/")
	for i, s := range segments {
		if !strings.HasPrefix(s, "{") {
			continue
		}
		segments[i] = "x"
		if i < len(globs) {
			segments[i] = strings.ReplaceAll(globs[i], "*", "x")
		}
		name, err := url.PathUnescape(segments[i])
		if i == len(globs)-1 && strings.HasSuffix(glob, "**") && name == "" {
			name, segments[i] = "x", "x"
		}
		if err != nil || name == "" || url.PathEscape(name) != segments[i] || s == "{job}" && validateName(name) != nil {
			return false
		}
	}
	return matchPath(glob, strings.Join(segments, "/"))
}

// parsedRules returns the rules of policies that validate has accepted. Rules
// that it does not accept, from an older version, grant nothing.
func parsedRules(policies []policy) []policyRules {
	list := make([]policyRules, 0, len(policies))
	for _, p := range policies {
		var rules policyRules
		if p.validate() == nil && json.Unmarshal([]byte(p.Rules), &rules) == nil {
			list = append(list, rules)
		}
	}
	return list
}

// allow reports whether one of the policies grants a capability on a path.
func allow(policies []policyRules, path, capability string) bool {
	for _, p := range policies {
		for glob, rule := range p.Path {
			if slices.Contains(rule.Capabilities, capability) && matchPath(glob, path) {
				return true
			}
		}
	}
	return false
}

// matchPath reports whether a path of a policy, as checkGlob accepts it, means
// a path.
func matchPath(glob, path string) bool {
	glob, rest := strings.CutSuffix(glob, "**")
	for {
		want, globs, more := strings.Cut(glob, "/")
		got, paths, longer := strings.Cut(path, "/")
		if rest && !more {
			// The last segment of the pattern is a beginning.
			return matchSegment(want+"*", got)
		}
		if !matchSegment(want, got) || more != longer {
			return false
		}
		if !more {
			return true
		}
		glob, path = globs, paths
	}
}

// matchSegment reports whether a pattern with stars is the whole of a text. The
// leftmost place is the right one for every piece but the last: it leaves most
// to those that follow, so nothing is ever tried again.
func matchSegment(glob, text string) bool {
	pieces := strings.Split(glob, "*")
	if len(pieces) == 1 {
		return glob == text
	}
	first, last := pieces[0], pieces[len(pieces)-1]
	text, ok := strings.CutPrefix(text, first)
	if !ok {
		return false
	}
	for _, piece := range pieces[1 : len(pieces)-1] {
		at := strings.Index(text, piece)
		if at < 0 {
			return false
		}
		text = text[at+len(piece):]
	}
	return strings.HasSuffix(text, last)
}

// viewerPaths are what anybody who watches may see: no backup, which holds
// everything, and nothing of access control.
const viewerPaths = `
	"/v1":               {"capabilities": ["read"]},
	"/v1/jobs":          {"capabilities": ["list"]},
	"/v1/jobs/**":       {"capabilities": ["read", "list"]},
	"/v1/busy":          {"capabilities": ["list"]},
	"/v1/pause":         {"capabilities": ["read"]},
	"/v1/stats":         {"capabilities": ["read"]},
	"/v1/schedule":      {"capabilities": ["read"]},
	"/v1/summary":       {"capabilities": ["read"]},
	"/v1/executions":    {"capabilities": ["list"]},
	"/v1/upcoming":      {"capabilities": ["list"]},
	"/v1/members":       {"capabilities": ["list"]},
	"/v1/leader":        {"capabilities": ["read"]},
	"/v1/isleader":      {"capabilities": ["read"]},
	"/v1/raft/peers":    {"capabilities": ["list"]},
	"/v1/openapi.yaml":  {"capabilities": ["read"]},
	"/health":           {"capabilities": ["read"]},
	"/metrics":          {"capabilities": ["read"]}`

// builtIn are the policies that are always there, by name. An operator runs
// jobs, toggles them and ends runs, but says not what they do.
var builtIn = []policy{
	{"admin", `{"path": {"/**": {"capabilities": ["create", "read", "update", "delete", "list"]}}}`},
	{"operator", `{"path": {` + viewerPaths + `,
	"/v1/jobs/*":                    {"capabilities": ["create"]},
	"/v1/jobs/*/toggle":             {"capabilities": ["create"]},
	"/v1/jobs/*/executions/*/kill":  {"capabilities": ["create"]}
}}`},
	{"viewer", `{"path": {` + viewerPaths + `
}}`},
}

// builtInPolicy returns the policy of that name that is always there.
func builtInPolicy(name string) (policy, bool) {
	i := slices.IndexFunc(builtIn, func(p policy) bool { return p.Name == name })
	if i < 0 {
		return policy{}, false
	}
	return builtIn[i], true
}

// A token says who its bearer is and which policies hold for him.
type token struct {
	Accessor string   `json:"accessor"` // random; its public name
	Name     string   `json:"name"`
	Type     string   `json:"type"` // tokenManagement or tokenClient
	Policies []string `json:"policies,omitempty"`
	Hash     []byte   `json:"hash"`              // SHA-256 of the secret
	Created  int64    `json:"created"`           // Unix nanoseconds, as the next
	Expires  int64    `json:"expires,omitempty"` // 0: never
}

// Types of tokens: one may do everything, the other what its policies grant.
const (
	tokenManagement = "management"
	tokenClient     = "client"
)

// decodeToken reads a token as clients ask for one. It has no accessor and no
// secret yet. The error is one sentence that names the field.
func decodeToken(doc []byte, now int64) (token, error) {
	var asked struct {
		Name          string
		Type          string
		Policies      []string
		ExpirationTTL string
	}
	if err := decodeStrict(doc, &asked); err != nil {
		return token{}, fmt.Errorf("the body is no token: %w", err)
	}
	t := token{Name: asked.Name, Type: asked.Type, Policies: asked.Policies, Created: now}
	if asked.Type == "" {
		t.Type = tokenClient
	}
	if asked.ExpirationTTL != "" {
		age, err := time.ParseDuration(asked.ExpirationTTL)
		if err != nil || age <= 0 || age > tokenAgeMax {
			return token{}, fmt.Errorf("ExpirationTTL: %q must be a time such as \"24h\", and not more than ten years", asked.ExpirationTTL)
		}
		t.Expires = now + int64(age)
	}
	return t, t.validate()
}

func (t token) validate() error {
	switch {
	case t.Name == "" || len(t.Name) > policyNameBytesMax || strings.ContainsFunc(t.Name, unicode.IsControl):
		return fmt.Errorf("Name: must have 1 to %d bytes and no control characters", policyNameBytesMax)
	case t.Type != tokenManagement && t.Type != tokenClient:
		return fmt.Errorf("Type: %q is none, want %s or %s", t.Type, tokenClient, tokenManagement)
	case t.Type == tokenManagement && len(t.Policies) > 0:
		return errors.New("Policies: a management token may do everything; leave them out, or make a client token")
	case t.Type == tokenClient && len(t.Policies) == 0:
		return errors.New("Policies: a client token needs at least one, such as \"viewer\"")
	case len(t.Policies) > tokenPoliciesMax:
		return fmt.Errorf("Policies: there may be %d at the most", tokenPoliciesMax)
	}
	return nil
}

// valid reports whether the token holds at a time.
func (t token) valid(now int64) bool { return t.Expires == 0 || now < t.Expires }

// newSecret returns a secret and what is stored of it.
func newSecret() (secret string, hash [sha256.Size]byte) {
	raw := make([]byte, secretBytes)
	rand.Read(raw) // never fails
	secret = base64.RawURLEncoding.EncodeToString(raw)
	return secret, sha256.Sum256([]byte(secret))
}

// hashSecret returns the hash of what could be a secret; ok is false for what
// could not.
func hashSecret(secret string) (hash [sha256.Size]byte, ok bool) {
	if len(secret) != base64.RawURLEncoding.EncodedLen(secretBytes) {
		return hash, false
	}
	if _, err := base64.RawURLEncoding.Strict().DecodeString(secret); err != nil {
		return hash, false
	}
	return sha256.Sum256([]byte(secret)), true
}

// sameHash compares in constant time.
func sameHash(a, b []byte) bool { return subtle.ConstantTimeCompare(a, b) == 1 }

// caller is who a request is, and what it may do. The zero caller has no token
// and may do nothing.
type caller struct {
	token token
	all   bool // everything is allowed: a management token, or no access control
	rules []policyRules
}

// may reports whether the caller has a capability on a path.
func (c *caller) may(path, capability string) bool {
	return c.all || allow(c.rules, path, capability)
}

// jobPath is the path of a job, as policies name it.
func jobPath(name string) string { return "/v1/jobs/" + url.PathEscape(name) }

// mayStore reports whether the caller may say what a job does. Who may not is
// not shown what secrets it works with.
func (c *caller) mayStore(job string) bool {
	return c.mayStoreAll() || c.may(jobPath(job), mayUpdate)
}

// mayStoreAll reports whether the caller may store any job.
func (c *caller) mayStoreAll() bool {
	return c.may("/v1/jobs", mayCreate) || c.may("/v1/jobs", mayUpdate)
}

// jobGlobs returns patterns of the names of all jobs that the caller may read or
// list, sorted; "*" stands for any text. None: no job.
func (c *caller) jobGlobs() []string { return c.globsOf("", mayRead, mayList) }

// rowGlobs is globsOf for a list over all jobs, nil if it may have every job.
func (c *caller) rowGlobs(below, capability string) []string {
	if globs := c.globsOf(below, capability); !slices.Equal(globs, []string{"*"}) {
		return globs
	}
	return nil
}

// globsOf returns patterns of the names of all jobs on which, or on what is
// below them, the caller has one of some capabilities.
func (c *caller) globsOf(below string, capabilities ...string) []string {
	if c.all {
		return []string{"*"}
	}
	globs := []string{}
	for _, p := range c.rules {
		for path, rule := range p.Path {
			if slices.ContainsFunc(capabilities, func(want string) bool { return slices.Contains(rule.Capabilities, want) }) {
				if glob, ok := jobGlob(path, below); ok {
					globs = append(globs, glob)
				}
			}
		}
	}
	slices.Sort(globs)
	if globs = slices.Compact(globs); slices.Contains(globs, "*") {
		return []string{"*"}
	}
	return globs
}

// jobGlob returns which names a path of a policy has at the place of the job in
// /v1/jobs/{job}, or in the path below that; false if it means no such path.
func jobGlob(path, below string) (string, bool) {
	path, rest := strings.CutSuffix(path, "**")
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	wanted := []string{"v1", "jobs", "{job}"}
	if below != "" {
		wanted = append(wanted, below)
	}
	for i, want := range wanted {
		last := i == len(segments)-1
		open := last && rest // whatever follows
		segment := segments[i]
		if open {
			segment += "*"
		}
		switch {
		case i != 2 && !matchSegment(segment, want), last && !rest && i < len(wanted)-1:
			return "", false
		case open && i < 2:
			return "*", true
		case open:
			return nameGlob(segments[2], i == 2)
		}
	}
	if len(segments) != len(wanted) {
		return "", false
	}
	return nameGlob(segments[2], false)
}

// nameGlob makes of a segment of a path a pattern of names, with rest of all
// that begin like that.
func nameGlob(segment string, rest bool) (string, bool) {
	// A path has names escaped, and only in one way; a name has no stars.
	pieces := strings.Split(segment, "*")
	for i, piece := range pieces {
		name, err := url.PathUnescape(piece)
		if err != nil || url.PathEscape(name) != piece || strings.ContainsAny(name, "*?[") {
			return "", false
		}
		pieces[i] = name
	}
	if rest {
		pieces = append(pieces, "")
	}
	return strings.Join(pieces, "*"), true
}

// hiddenValue stands for a value of executor_config that looks secret.
const hiddenValue = "<hidden>"

// secretWords are what the keys of secrets contain.
var secretWords = []string{"env", "header", "payload", "body", "pass", "secret", "token", "key", "auth", "cred", "cookie"}

// hideSecrets replaces the values of executor_config that look secret in the
// JSON of a job, and leaves everything else, its order too.
func hideSecrets(doc []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	out := []byte{'{'}
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return nil, err
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		if name == "executor_config" {
			if value, err = hideValues(value); err != nil {
				return nil, err
			}
		}
		key, err := json.Marshal(name)
		if err != nil {
			return nil, err
		}
		if len(out) > 1 {
			out = append(out, ',')
		}
		out = append(append(append(out, key...), ':'), value...)
	}
	return append(out, '}'), nil
}

func hideValues(doc []byte) ([]byte, error) {
	var config map[string]string
	if err := json.Unmarshal(doc, &config); err != nil || config == nil {
		return doc, err
	}
	return plainJSON(hideConfig(config))
}

// hideConfig returns an executor_config without the values that look secret.
func hideConfig(config map[string]string) map[string]string {
	shown := maps.Clone(config)
	for k, v := range config {
		// A URL can have a password before its host.
		if secretKey(k) || urlKey(k) && strings.Contains(v, "@") {
			shown[k] = hiddenValue
		}
	}
	return shown
}

func urlKey(key string) bool { return strings.EqualFold(key, "url") }

// secretKey reports whether a key of executor_config is that of a secret.
func secretKey(key string) bool {
	lower := strings.ToLower(key)
	return slices.ContainsFunc(secretWords, func(word string) bool { return strings.Contains(lower, word) })
}

// checkHidden refuses an executor_config that was read by somebody who may not
// see what is secret in it: stored, it would take the place of the secret.
func checkHidden(config map[string]string) error {
	for _, k := range sortedKeys(config) {
		if config[k] == hiddenValue && (secretKey(k) || urlKey(k)) {
			return fmt.Errorf("executor_config.%s: is %q, which is what those see who may not see it; send the value, or leave the job as it is", k, hiddenValue)
		}
	}
	return nil
}

// plainJSON is json.Marshal for people: it writes <hidden> and not
// \u003chidden\u003e.
func plainJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(out.Bytes()), err
}

// bootstrapFile is, in the data directory, the secret with which the first
// management token is made: who can read it could as well read the database.
// An address would prove nothing, for behind a proxy everybody is loopback.
const bootstrapFile = "acl-bootstrap"

// writeBootstrapSecret makes the file, if it is not there.
func writeBootstrapSecret(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, bootstrapFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	secret, _ := newSecret()
	_, err = io.WriteString(f, secret+"\n")
	return errors.Join(err, f.Close())
}

// readBootstrapSecret returns the hash of the secret. A file that a crash left
// empty holds none; remove it and start again.
func readBootstrapSecret(dir string) ([sha256.Size]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, bootstrapFile))
	hash, ok := hashSecret(strings.TrimSpace(string(text)))
	if err == nil && !ok {
		err = errors.New("the file holds no secret")
	}
	return hash, err
}

// removeBootstrapSecret removes the file, if it is there.
func removeBootstrapSecret(dir string) error {
	err := os.Remove(filepath.Join(dir, bootstrapFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// decodeStrict reads one JSON value with no unknown fields and nothing behind it.
func decodeStrict(doc []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.DisallowUnknownFields()
	switch err := d.Decode(v); {
	case err == io.EOF:
		return errors.New("it is empty")
	case err != nil:
		return err
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("something follows the JSON value")
	}
	return nil
}

// ---- What the operator of a node lets jobs do there

// nodeLimits is what a node's operator lets jobs do there, whoever stored them. The zero value runs both executors, as the
// node's own user alone, and reaches all but metadata services.
type nodeLimits struct {
	Executors     []string // that run here, nil: all
	AllowSu       []string // values of "su" that jobs may have, each as a whole
	AllowMetadata bool     // http requests reach the metadata services of clouds
	DenyPrivate   bool     // http requests do not reach private and loopback addresses
	FilesDir      string   // the processor "files" writes below this directory, which is made; "": files in the data directory
}

// account returns whom to run as for the su of a job, "user" or "user:group",
// always with the other groups of that user, and what the environment says of
// that user.
func (l nodeLimits) account(su string) (*syscall.Credential, []string, error) {
	if !slices.Contains(l.AllowSu, su) { // as a whole: "user" allows no "user:docker"
		return nil, nil, fmt.Errorf("this node does not run jobs as %q; add it to --allow-su there", su)
	}
	name, group, hasGroup := strings.Cut(su, ":")
	u, err := user.Lookup(name)
	if err != nil {
		return nil, nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return nil, nil, err
	}
	if hasGroup {
		g, err := user.LookupGroup(group)
		if err != nil {
			return nil, nil, err
		}
		u.Gid = g.Gid
	}
	var numbers []uint32
	for _, s := range append([]string{u.Uid, u.Gid}, ids...) {
		n, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			return nil, nil, err
		}
		numbers = append(numbers, uint32(n))
	}
	shell := "/bin/sh"
	passwd, _ := os.ReadFile("/etc/passwd") // of users that it does not know nobody says the shell
	for line := range strings.Lines(string(passwd)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); f[0] == u.Username && len(f) == 7 {
			shell = cmp.Or(f[6], shell)
		}
	}
	return &syscall.Credential{Uid: numbers[0], Gid: numbers[1], Groups: numbers[2:]},
		[]string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username, "SHELL=" + shell}, nil
}

// metadataAddrs are where clouds tell a machine who it is and what it may do. Credentials can be read there by whoever makes
// the machine ask: link-local addresses, and those that some clouds took instead.
var metadataAddrs = prefixes("169.254.0.0/16", "fe80::/10",
	"fd00:ec2::/32",                               // AWS
	"fd20:ce::254/128",                            // Google
	"100.100.100.200/32", "fd00:100::100:200/128", // Alibaba
	"168.63.129.16/32",                         // Azure
	"192.0.0.192/32", "fd00:c1::a9fe:a9fe/128", // Oracle
	"fd00:42::42/128",       // Scaleway
	"fd00:a9fe:a9fe::1/128", // Linode
	"64:ff9b:1::/48")        // whatever a network's own NAT64 makes of it

// privateAddrs are private beyond what netip says.
var privateAddrs = prefixes("100.64.0.0/10", "0.0.0.0/8")

func prefixes(list ...string) (parsed []netip.Prefix) {
	for _, s := range list {
		parsed = append(parsed, netip.MustParsePrefix(s))
	}
	return parsed
}

// nat64 holds all IPv4 addresses in its last four bytes.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// literalAddr returns the address that a host stands for without being resolved, if it is one: also IPv4 as C libraries
// read it, of one to four numbers in decimal, hex or octal, of which the last fills what is left.
func literalAddr(host string) (netip.Addr, bool) {
	host = strings.TrimSuffix(host, ".")
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr, true
	}
	parts := strings.Split(host, ".")
	n := uint64(0)
	for i, part := range parts {
		bits := 8
		if i == len(parts)-1 {
			bits = 8 * max(1, 4-i)
		}
		v, err := strconv.ParseUint(part, 0, bits)
		if err != nil || i == 4 {
			return netip.Addr{}, false
		}
		n = n<<bits | v
	}
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, uint32(n)))), true
}

// checkAddr says why a request must not reach an address, nil if it may.
func (l nodeLimits) checkAddr(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case !l.AllowMetadata && slices.ContainsFunc(metadataAddrs, in):
		return fmt.Errorf("executor_config.url: %s is an address of a metadata service, which this node does not reach without --http-allow-metadata", addr)
	case l.DenyPrivate && (addr.IsPrivate() || addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() || slices.ContainsFunc(privateAddrs, in)):
		return fmt.Errorf("executor_config.url: %s is a private address, which this node does not reach because of --http-deny-private", addr)
	}
	return nil
}
