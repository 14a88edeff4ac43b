// Acl owns policies and tokens: their validation, their meaning, and the caller that a secret stands for. It also owns
// a node's limits: which users its jobs may run as, which addresses they may reach, and which of too many connections
// makes room for a new one.
//
// Invariants:
//
//  1. Access is denied unless a policy grants it; no rule revokes what another grants.
//  2. A path is that of a route with its names escaped, so no name can cross a slash into another path.
//  3. Matching takes time linear in the lengths of path and pattern.
//  4. Secrets of tokens are never on disk: what is stored is the SHA-256, which for 256 random bits needs no salt.
package main

import (
	"bytes"
	"cmp"
	linked "container/list"
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
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	policyNameBytesMax = 255
	policyBytesMax     = 64_000 // of its JSON, rules included
	policyPathBytesMax = 1_500  // of one path: the longest job name, escaped, and what surrounds it
	policyStarsMax     = 8      // in one path; with more, nobody can foresee what matches

	tokenBytesMax    = 16_000 // of the JSON that creates one
	tokenPoliciesMax = 32     // of one token: every request reads them
	tokenAgeMax      = 10 * 365 * 24 * time.Hour
	secretBytes      = 32 // random, so guessing is hopeless: failed guesses are counted, but not limited
)

// What a route requires of its caller. Policies grant the first five.
const (
	mayCreate = "create"
	mayRead   = "read"
	mayUpdate = "update"
	mayDelete = "delete"
	mayList   = "list"

	mayStoreJob = "store" // create or update on /v1/jobs, or update on the job
	mayListJobs = "jobs"  // read or list on any job; the response is limited to those jobs
	anyToken    = "any"   // any valid token
	noToken     = "none"  // nothing
)

// capabilities are what a policy can grant on a path.
var capabilities = []string{mayCreate, mayRead, mayUpdate, mayDelete, mayList}

// A policy grants capabilities to the tokens that name it. Its fields are named as in Dkron.
type policy struct {
	Name  string `json:"Name"`
	Rules string `json:"Rules"` // JSON of policyRules, kept as written
}

// policyRules grant capabilities on paths of the API. In a path, "*" matches any text within a segment, and "**", at
// the end only, any text.
type policyRules struct {
	Path map[string]struct {
		Capabilities []string `json:"capabilities"`
	} `json:"path"`
}

// decodePolicy decodes the policy called name as clients send it. It refuses unknown fields: an overlooked rule would
// grant less, or more, than its author meant. An empty body, which upstream's document allows, is a policy that grants
// nothing. The error is one sentence that names the field.
func decodePolicy(name string, doc []byte) (policy, error) {
	if len(doc) == 0 {
		doc = []byte(`{"Rules": "{}"}`)
	}
	var p policy
	if err := decodeStrict(doc, &p); err != nil {
		return policy{}, fmt.Errorf("the body is not a policy: %w", err)
	}
	if p.Name != "" && p.Name != name {
		return policy{}, fmt.Errorf("Name: %q differs from %q in the path", p.Name, name)
	}
	p.Name = name
	return p, p.validate()
}

// checkName refuses the name of a policy or a token.
func checkName(name string) error {
	if name == "" || len(name) > policyNameBytesMax || strings.ContainsFunc(name, unicode.IsControl) {
		return fmt.Errorf("Name: must have 1 to %d bytes and no control characters", policyNameBytesMax)
	}
	return nil
}

// rules returns the policy's rules, or what is wrong with it.
func (p policy) rules() (rules policyRules, err error) {
	if err := checkName(p.Name); err != nil {
		return rules, err
	}
	if err := decodeStrict([]byte(p.Rules), &rules); err != nil {
		const example = `{"path": {"/v1/jobs/*": {"capabilities": ["read"]}}}`
		return rules, fmt.Errorf("Rules: must be a string of JSON such as %s: %w", example, err)
	}
	for _, path := range sortedKeys(rules.Path) {
		if err := checkGlob(path); err != nil {
			return rules, fmt.Errorf("Rules: the path %q %w", path, err)
		}
		for _, c := range rules.Path[path].Capabilities {
			if !slices.Contains(capabilities, c) {
				known := strings.Join(capabilities, ", ")
				return rules, fmt.Errorf("Rules: %q on %q is not a capability; use one of %s", c, path, known)
			}
		}
	}
	return rules, nil
}

func (p policy) validate() error {
	_, err := p.rules()
	return err
}

// checkGlob returns what is wrong with a path of a policy. It refuses the special characters of other pattern
// languages: here they would be literal, and no path contains them.
func checkGlob(path string) error {
	stars, rest := strings.TrimSuffix(path, "**"), strings.HasSuffix(path, "**")
	switch {
	case !strings.HasPrefix(path, "/"):
		return errors.New("must begin with a slash, such as \"/v1/jobs/*\"")
	case len(path) > policyPathBytesMax:
		return fmt.Errorf("must not be longer than %d bytes", policyPathBytesMax)
	case strings.ContainsAny(path, `?[]{}\`),
		strings.ContainsFunc(path, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("must consist of letters, digits, slashes and stars; escape other characters as in a URL")
	case strings.Contains(stars, "**") || rest && strings.HasSuffix(stars, "*"):
		return errors.New("may contain ** at its end only")
	case strings.Count(path, "*") > policyStarsMax:
		return fmt.Errorf("must not have more than %d stars", policyStarsMax)
	}
	return nil
}

// checkPaths refuses a policy with a path that matches no path of the API: its author must have meant another. api
// holds the paths of the routes, with {…} for names.
func (p policy) checkPaths(api []string) error {
	rules, err := p.rules()
	for _, path := range sortedKeys(rules.Path) {
		if !slices.ContainsFunc(api, func(known string) bool { return meansPath(path, known) }) {
			return fmt.Errorf("Rules: the API has no path %q, so it would grant nothing; a job is /v1/jobs/{name}, "+
				"all jobs are /v1/jobs/*, and everything below a job is /v1/jobs/{name}/**", path)
		}
	}
	return err
}

// meansPath reports whether glob, a path of a policy, matches known, a path of the API, for some names in place of
// {…}. It tries those that glob has there, if they are valid names.
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
		if err != nil || name == "" || url.PathEscape(name) != segments[i] ||
			s == "{job}" && validateName(name) != nil {
			return false
		}
	}
	return matchPath(glob, strings.Join(segments, "/"))
}

// parsedRules returns the rules of policies. Invalid ones grant nothing.
func parsedRules(policies []policy) []policyRules {
	list := make([]policyRules, 0, len(policies))
	for _, p := range policies {
		if rules, err := p.rules(); err == nil {
			list = append(list, rules)
		}
	}
	return list
}

// allow reports whether one of the policies grants capability on path.
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

// matchPath reports whether glob, which checkGlob has accepted, matches path.
func matchPath(glob, path string) bool {
	globs, open := globSegments(glob)
	paths := strings.Split(path, "/")
	if open {
		paths = paths[:min(len(globs), len(paths))]
	}
	return slices.EqualFunc(globs, paths, matchSegment)
}

// globSegments returns the segments of a path of a policy, each a pattern for matchSegment, and whether more may follow
// the last.
func globSegments(glob string) (segments []string, open bool) {
	if open = strings.HasSuffix(glob, "**"); open {
		glob = glob[:len(glob)-1] // the last segment is a prefix
	}
	return strings.Split(glob, "/"), open
}

// matchSegment reports whether a pattern with stars matches the whole text. The leftmost match is right for every piece
// but the last: it leaves the most text to the pieces after it, so there is no backtracking.
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

// viewerPaths are what the policies viewer and operator may see: no backup, which holds everything, no audit trail, and
// nothing about access control.
const viewerPaths = `
	"/v1":               {"capabilities": ["read"]},
	"/v1/jobs":          {"capabilities": ["list"]},
	"/v1/jobs/**":       {"capabilities": ["read", "list"]},
	"/v1/busy":          {"capabilities": ["list"]},
	"/v1/pause":         {"capabilities": ["read"]},
	"/v1/hold":          {"capabilities": ["read"]},
	"/v1/calendars":     {"capabilities": ["list"]},
	"/v1/calendars/*":   {"capabilities": ["read"]},
	"/v1/stats":         {"capabilities": ["read"]},
	"/v1/schedule":      {"capabilities": ["read"]},
	"/v1/summary":       {"capabilities": ["read"]},
	"/v1/executions":    {"capabilities": ["list"]},
	"/v1/failures":      {"capabilities": ["list"]},
	"/v1/timeline":      {"capabilities": ["list"]},
	"/v1/upcoming":      {"capabilities": ["list"]},
	"/v1/members":       {"capabilities": ["list"]},
	"/v1/leader":        {"capabilities": ["read"]},
	"/v1/isleader":      {"capabilities": ["read"]},
	"/v1/raft/peers":    {"capabilities": ["list"]},
	"/v1/openapi.yaml":  {"capabilities": ["read"]},
	"/health":           {"capabilities": ["read"]},
	"/debug/vars":       {"capabilities": ["read"]},
	"/metrics":          {"capabilities": ["read"]}`

// builtIn are the policies that every cluster has, sorted by name. An operator may run, toggle and hold jobs, kill
// executions and drain nodes, but not change what jobs do.
var builtIn = []policy{
	{"admin", `{"path": {"/**": {"capabilities": ["create", "read", "update", "delete", "list"]}}}`},
	{"operator", `{"path": {` + viewerPaths + `,
	"/v1/jobs/*":                    {"capabilities": ["create"]},
	"/v1/jobs/*/toggle":             {"capabilities": ["create"]},
	"/v1/jobs/*/executions/*/kill":  {"capabilities": ["create"]},
	"/v1/hold":                      {"capabilities": ["create", "read"]},
	"/v1/release":                   {"capabilities": ["create"]},
	"/v1/enable":                    {"capabilities": ["create"]},
	"/v1/disable":                   {"capabilities": ["create"]},
	"/v1/members/*/drain":           {"capabilities": ["create"]},
	"/v1/members/*/undrain":         {"capabilities": ["create"]}
}}`},
	{"viewer", `{"path": {` + viewerPaths + `
}}`},
}

// builtInPolicy returns the built-in policy of that name.
func builtInPolicy(name string) (policy, bool) {
	for _, p := range builtIn {
		if p.Name == name {
			return p, true
		}
	}
	return policy{}, false
}

// A token identifies its bearer and names the policies that apply to it.
type token struct {
	Accessor string   `json:"accessor"` // random; its public id
	Name     string   `json:"name"`
	Type     string   `json:"type"` // tokenManagement or tokenClient
	Policies []string `json:"policies,omitempty"`
	Hash     []byte   `json:"hash"`              // SHA-256 of the secret
	Created  int64    `json:"created"`           // Unix nanoseconds
	Expires  int64    `json:"expires,omitempty"` // Unix nanoseconds; 0: never
}

// Types of tokens: a management token may do everything, a client token what its policies grant.
const (
	tokenManagement = "management"
	tokenClient     = "client"
)

// decodeToken decodes a client's request for a token, which has no accessor and no hash yet. now is in Unix
// nanoseconds. The error is one sentence that names the field.
func decodeToken(doc []byte, now int64) (token, error) {
	var asked struct {
		Name          string
		Type          string
		Policies      []string
		ExpirationTTL string
	}
	if err := decodeStrict(doc, &asked); err != nil {
		return token{}, fmt.Errorf("the body is not a token: %w", err)
	}
	t := token{Name: asked.Name, Type: cmp.Or(asked.Type, tokenClient), Policies: asked.Policies, Created: now}
	if asked.ExpirationTTL != "" {
		age, err := time.ParseDuration(asked.ExpirationTTL)
		if err != nil || age <= 0 || age > tokenAgeMax {
			const text = "ExpirationTTL: %q must be a duration such as 24h, at most ten years"
			return token{}, fmt.Errorf(text, asked.ExpirationTTL)
		}
		t.Expires = now + int64(age)
	}
	return t, t.validate()
}

func (t token) validate() error {
	switch {
	case t.Type != tokenManagement && t.Type != tokenClient:
		return fmt.Errorf("Type: %q is not a type; use %s or %s", t.Type, tokenClient, tokenManagement)
	case t.Type == tokenManagement && len(t.Policies) > 0:
		return errors.New("Policies: a management token may do everything; omit them, or create a client token")
	case t.Type == tokenClient && len(t.Policies) == 0:
		return errors.New("Policies: a client token needs at least one, such as \"viewer\"")
	case len(t.Policies) > tokenPoliciesMax:
		return fmt.Errorf("Policies: at most %d are allowed", tokenPoliciesMax)
	}
	return checkName(t.Name)
}

// valid reports whether the token has not expired at now, in Unix nanoseconds.
func (t token) valid(now int64) bool { return t.Expires == 0 || now < t.Expires }

// newSecret returns a random secret and its hash, which is all that is stored.
func newSecret() (secret string, hash [sha256.Size]byte) {
	raw := make([]byte, secretBytes)
	rand.Read(raw) // never fails
	secret = base64.RawURLEncoding.EncodeToString(raw)
	return secret, sha256.Sum256([]byte(secret))
}

// hashSecret returns the hash of a secret; ok is false if the text has not the form of one.
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

// A caller is the sender of a request with its rights. The zero caller has no token and may do nothing.
type caller struct {
	token token
	all   bool // may do everything: a management token, or no access control
	rules []policyRules
}

// may reports whether the caller has a capability on a path.
func (c *caller) may(path, capability string) bool {
	return c.all || allow(c.rules, path, capability)
}

// jobPath returns the path of a job, as policies name it.
func jobPath(name string) string { return "/v1/jobs/" + url.PathEscape(name) }

// mayListRuns reports whether the caller may list the executions of a job.
func (c *caller) mayListRuns(job string) bool { return c.may(jobPath(job)+"/executions", mayList) }

// mayStore reports whether the caller may change a job. Its secrets are hidden from callers that may not.
func (c *caller) mayStore(job string) bool {
	return c.mayStoreAll() || c.may(jobPath(job), mayUpdate)
}

// mayStoreSome reports whether the caller may change the job of that name; "": some job.
func (c *caller) mayStoreSome(job string) bool {
	return job != "" && c.mayStore(job) || job == "" && (c.mayStoreAll() || len(c.globsOf("", mayUpdate)) > 0)
}

// mayStoreAll reports whether the caller may store any job.
func (c *caller) mayStoreAll() bool {
	return c.may("/v1/jobs", mayCreate) || c.may("/v1/jobs", mayUpdate)
}

// jobGlobs returns sorted patterns that match the names of all jobs that the caller may read or list; "*" stands for
// any text. It is empty if there is no such job.
func (c *caller) jobGlobs() []string { return c.globsOf("", mayRead, mayList) }

// rowGlobs is globsOf for one capability, but nil, for no restriction, if the caller has it on every job.
func (c *caller) rowGlobs(below, capability string) []string {
	if globs := c.globsOf(below, capability); !slices.Equal(globs, []string{"*"}) {
		return globs
	}
	return nil
}

// globsOf returns patterns that match the names of all jobs on which the caller has one of the capabilities, or, unless
// below is empty, on /v1/jobs/{job}/below.
func (c *caller) globsOf(below string, capabilities ...string) []string {
	if c.all {
		return []string{"*"}
	}
	globs := []string{}
	for _, p := range c.rules {
		for path, rule := range p.Path {
			granted := func(want string) bool { return slices.Contains(rule.Capabilities, want) }
			if glob, ok := jobGlob(path, below); ok && slices.ContainsFunc(capabilities, granted) {
				globs = append(globs, glob)
			}
		}
	}
	slices.Sort(globs)
	if globs = slices.Compact(globs); slices.Contains(globs, "*") {
		return []string{"*"}
	}
	return globs
}

// jobGlob returns the pattern of names that a path of a policy has in place of {job} in /v1/jobs/{job}, or, unless
// below is empty, in /v1/jobs/{job}/below. It returns false if it matches no such path.
func jobGlob(path, below string) (string, bool) {
	segments, open := globSegments(path)
	wanted := strings.Split(strings.TrimSuffix("/v1/jobs/{job}/"+below, "/"), "/")
	if len(segments) > len(wanted) || !open && len(segments) < len(wanted) {
		return "", false
	}
	for i, segment := range segments {
		if i != 3 && !matchSegment(segment, wanted[i]) {
			return "", false
		}
	}
	if len(segments) < 4 {
		return "*", true
	}
	return nameGlob(segments[3])
}

// nameGlob unescapes a segment of a path into a pattern of names.
func nameGlob(segment string) (string, bool) {
	// Names are escaped in exactly one way, and contain no stars.
	pieces := strings.Split(segment, "*")
	for i, piece := range pieces {
		name, err := url.PathUnescape(piece)
		if err != nil || url.PathEscape(name) != piece || strings.ContainsAny(name, "*?[") {
			return "", false
		}
		pieces[i] = name
	}
	return strings.Join(pieces, "*"), true
}

// hiddenValue replaces a value of executor_config that looks secret.
const hiddenValue = "<hidden>"

// paramWords mark a parameter whose name contains one of them as secret; secretWords a key of executor_config.
var (
	paramWords  = []string{"pass", "secret", "token", "key", "auth", "cred", "cookie"}
	secretWords = append([]string{"env", "header", "payload", "body"}, paramWords...)
)

// hiddenIn are the fields of a job that may hold secrets, with what hides these in the field's JSON.
var hiddenIn = map[string]func([]byte) ([]byte, error){
	"executor_config": hideValues(hideConfig), "params": hideValues(hideParams), "notify": hideReceivers,
}

// hideReceivers replaces the URLs of receivers: whoever knows one can send to it.
func hideReceivers(doc []byte) ([]byte, error) {
	var list []map[string]any
	err := json.Unmarshal(doc, &list)
	for _, r := range list {
		if r["webhook"] != nil {
			r["webhook"] = hiddenValue
		}
	}
	if err != nil || list == nil {
		return doc, err
	}
	return plainJSON(list)
}

// hideSecrets replaces what looks secret in the JSON of a job. It keeps everything else, including the order.
func hideSecrets(doc []byte) ([]byte, error) {
	d := json.NewDecoder(bytes.NewReader(doc))
	_, err := d.Token()
	out := []byte{'{'}
	for err == nil && d.More() {
		var name json.Token
		var value json.RawMessage
		if name, err = d.Token(); err == nil {
			err = d.Decode(&value)
		}
		if hide := hiddenIn[fmt.Sprint(name)]; err == nil && hide != nil {
			value, err = hide(value)
		}
		key, _ := json.Marshal(name) // which was just read
		out = fmt.Appendf(out, "%s:%s,", key, value)
	}
	return append(bytes.TrimSuffix(out, []byte(",")), '}'), err
}

func hideValues(hide func(map[string]string) map[string]string) func([]byte) ([]byte, error) {
	return func(doc []byte) ([]byte, error) {
		var values map[string]string
		if err := json.Unmarshal(doc, &values); err != nil || values == nil {
			return doc, err
		}
		return plainJSON(hide(values))
	}
}

// hidden returns a copy of values in which those that are secret are replaced.
func hidden(values map[string]string, secret func(key, value string) bool) map[string]string {
	shown := maps.Clone(values)
	for k, v := range values {
		if secret(k, v) {
			shown[k] = hiddenValue
		}
	}
	return shown
}

// hideParams returns a copy of parameters with the values that look secret replaced.
func hideParams(params map[string]string) map[string]string {
	return hidden(params, func(k, _ string) bool { return contains(k, paramWords) })
}

// hideConfig returns a copy of an executor_config with the values that look secret replaced. A URL may contain a
// password before its host.
func hideConfig(config map[string]string) map[string]string {
	return hidden(config, func(k, v string) bool { return secretKey(k) || urlKey(k) && strings.Contains(v, "@") })
}

func urlKey(key string) bool { return strings.EqualFold(key, "url") }

// secretKey reports whether a key of executor_config looks like that of a secret.
func secretKey(key string) bool { return contains(key, secretWords) }

// contains reports whether a name contains one of words, in upper or lower case.
func contains(name string, words []string) bool {
	lower := strings.ToLower(name)
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(lower, word) })
}

// checkHidden refuses a field of a job, or parameters of a run, with a hidden value in it: it would take the place of
// the secret.
func checkHidden(field string, config map[string]string) error {
	for _, k := range sortedKeys(config) {
		if config[k] == hiddenValue && (secretKey(k) || urlKey(k)) {
			return fmt.Errorf("%s.%s: %q stands for a hidden value; send the value itself", field, k, hiddenValue)
		}
	}
	return nil
}

// plainJSON is json.Marshal without HTML escaping: it writes <hidden>, not \u003chidden\u003e.
func plainJSON(v any) ([]byte, error) {
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return bytes.TrimSpace(out.Bytes()), err
}

// bootstrapFile is the file in the data directory with the secret that the first management token requires. Whoever can
// read it could read the database as well. A loopback address proves nothing: through a proxy, every client has one.
const bootstrapFile = "acl-bootstrap"

// writeBootstrapSecret creates the file unless it exists.
func writeBootstrapSecret(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, bootstrapFile), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil:
		return err
	}
	secret, _ := newSecret()
	_, err = io.WriteString(f, secret+"\n")
	return errors.Join(err, f.Close())
}

// readBootstrapSecret returns the hash of the secret. After a crash the file may be empty; remove it and restart.
func readBootstrapSecret(dir string) ([sha256.Size]byte, error) {
	text, err := os.ReadFile(filepath.Join(dir, bootstrapFile))
	hash, ok := hashSecret(strings.TrimSpace(string(text)))
	if err == nil && !ok {
		err = errors.New("the file contains no secret")
	}
	return hash, err
}

// removeBootstrapSecret removes the file if it exists.
func removeBootstrapSecret(dir string) error {
	if err := os.Remove(filepath.Join(dir, bootstrapFile)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// decodeStrict decodes exactly one JSON value without unknown fields.
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
		return errors.New("there is text after the JSON value")
	}
	return nil
}

// ---- Limits of a node

// nodeLimits limit what jobs may do on a node, whoever stored them; its operator sets them. The zero value allows both
// executors, runs jobs as the node's own user only, and denies requests to metadata services only.
type nodeLimits struct {
	Executors     []string // that run here; nil: all
	AllowSu       []string // values of "su" that jobs may use; each must match as a whole
	AllowMetadata bool     // http jobs may reach the metadata services of clouds
	DenyPrivate   bool     // http jobs must not reach private and loopback addresses
	JobEnv        []string // variables of the node that jobs get, or jobEnvInherit or jobEnvClean; nil: the first
	FilesDir      string   // the processor "files" writes below it, and creates it; "": files in the data directory
}

// Values of nodeLimits.JobEnv that are no names: all variables, and no more than PATH, HOME and LANG.
const (
	jobEnvInherit = "inherit"
	jobEnvClean   = "clean"
)

// passed returns what jobs get of the node's environment.
func (l nodeLimits) passed(environ []string) []string {
	names := l.JobEnv
	switch {
	case names == nil || names[0] == jobEnvInherit:
		return environ
	case names[0] == jobEnvClean:
		names = []string{"PATH", "HOME", "LANG"}
	}
	return slices.DeleteFunc(slices.Clone(environ), func(entry string) bool {
		name, _, _ := strings.Cut(entry, "=")
		return !slices.Contains(names, name)
	})
}

// account returns the credential and the environment variables for the su of a job, "user" or "user:group". The
// credential always includes the supplementary groups of the user.
func (l nodeLimits) account(su string) (*syscall.Credential, []string, error) {
	if !slices.Contains(l.AllowSu, su) { // "user" must not allow "user:docker"
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
	passwd, _ := os.ReadFile("/etc/passwd") // a user from elsewhere, such as LDAP, gets the default shell
	for line := range strings.Lines(string(passwd)) {
		if f := strings.Split(strings.TrimSpace(line), ":"); f[0] == u.Username && len(f) == 7 {
			shell = cmp.Or(f[6], shell)
		}
	}
	return &syscall.Credential{Uid: numbers[0], Gid: numbers[1], Groups: numbers[2:]},
		[]string{"HOME=" + u.HomeDir, "USER=" + u.Username, "LOGNAME=" + u.Username, "SHELL=" + shell}, nil
}

// metadataAddrs are those of the clouds' metadata services, which give credentials to anybody who can make the machine
// send a request: link-local addresses, and the others that some clouds use.
var metadataAddrs = prefixes("169.254.0.0/16", "fe80::/10",
	"fd00:ec2::/32",                               // AWS
	"fd20:ce::254/128",                            // Google
	"100.100.100.200/32", "fd00:100::100:200/128", // Alibaba
	"168.63.129.16/32",                         // Azure
	"192.0.0.192/32", "fd00:c1::a9fe:a9fe/128", // Oracle
	"fd00:42::42/128",       // Scaleway
	"fd00:a9fe:a9fe::1/128", // Linode
	"64:ff9b:1::/48")        // a network's own NAT64 may translate it to any of these

// privateAddrs are private too, although netip does not count them as such.
var privateAddrs = prefixes("100.64.0.0/10", "0.0.0.0/8")

func prefixes(list ...string) (parsed []netip.Prefix) {
	for _, s := range list {
		parsed = append(parsed, netip.MustParsePrefix(s))
	}
	return parsed
}

// nat64 is the well-known prefix of NAT64; the last four bytes are an IPv4 address.
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// literalAddr returns the address if host is one and needs no resolving. It accepts IPv4 as C libraries do: one to four
// numbers in decimal, hex or octal, of which the last fills the remaining bytes.
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

// checkAddr returns why an http job must not reach an address; nil if it may.
func (l nodeLimits) checkAddr(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		b := addr.As16()
		addr = netip.AddrFrom4([4]byte(b[12:]))
	}
	in := func(p netip.Prefix) bool { return p.Contains(addr) }
	switch {
	case !l.AllowMetadata && slices.ContainsFunc(metadataAddrs, in):
		const text = "executor_config.url: %s is that of a metadata service, and this node lacks --http-allow-metadata"
		return fmt.Errorf(text, addr)
	case l.DenyPrivate && (addr.IsPrivate() || addr.IsLoopback() || addr.IsUnspecified() || addr.IsLinkLocalUnicast() ||
		slices.ContainsFunc(privateAddrs, in)):
		return fmt.Errorf("executor_config.url: %s is a private address, and this node has --http-deny-private", addr)
	}
	return nil
}

// connsMax returns the most connections that one listener may have: a fifth of the descriptors that this process may
// open (Go raises the soft limit at start). The API and the plane have a fifth each, executions two fifths, and the
// database and outgoing connections the rest.
func connsMax() int {
	files := syscall.Rlimit{Cur: 1_024} // if Getrlimit fails
	syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files)
	return int(min(files.Cur/5, 100_000))
}

// A connRank orders connections by how late they are closed in favour of new ones.
type connRank int

const (
	connIdle    connRank = iota // between requests
	connWaiting                 // no complete request header yet, or not admitted
	connReading                 // an admitted GET, which may take any time, or a request whose body is incomplete
	connWriting                 // an admitted request that is complete and not a GET; never closed for a new connection
)

// boundedListener accepts every connection. With more than max, it closes the one that has been longest in the lowest
// rank. So clients that only connect, or never finish, keep nobody out and take no descriptors from executions.
type boundedListener struct {
	net.Listener
	max int

	mu    sync.Mutex
	count int                          // guarded by mu
	ranks [connWriting + 1]linked.List // of *boundedConn, the oldest in its rank first; guarded by mu
}

type boundedConn struct {
	net.Conn
	listener *boundedListener
	rank     connRank        // guarded by listener.mu
	place    *linked.Element // in its rank; nil once closed; guarded by listener.mu
}

func newBoundedListener(l net.Listener, max int) *boundedListener {
	return &boundedListener{Listener: l, max: max}
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &boundedConn{Conn: conn, listener: l, rank: connWaiting}
	if victim := l.add(c); victim != nil {
		victim.Close() // an error changes nothing: it has given up its place
	}
	return c, nil
}

// add puts a connection in its rank and returns the one to close for it, which is c itself if all others are writing.
func (l *boundedListener) add(c *boundedConn) (victim *boundedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count++; l.count > l.max {
		victim = c
		for rank := connWriting - 1; rank >= connIdle; rank-- { // the lowest counts
			if front := l.ranks[rank].Front(); front != nil {
				victim = front.Value.(*boundedConn)
			}
		}
	}
	c.place = l.ranks[c.rank].PushBack(c)
	return victim
}

// enter moves a connection to a rank. Within a request the rank only rises.
func (c *boundedConn) enter(rank connRank) {
	c.listener.mu.Lock()
	defer c.listener.mu.Unlock()
	if c.place == nil || rank < c.rank && rank != connIdle {
		return
	}
	c.listener.ranks[c.rank].Remove(c.place)
	c.rank, c.place = rank, c.listener.ranks[rank].PushBack(c)
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	c.listener.mu.Lock()
	if c.place != nil {
		c.listener.ranks[c.rank].Remove(c.place)
		c.listener.count--
		c.place = nil
	}
	c.listener.mu.Unlock()
	return c.Conn.Close()
}
