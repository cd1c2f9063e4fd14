package plane

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// authority signs the certificates of one control plane.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  crypto.Signer
	pem  []byte
	next int64
}

// validity is longer than any run.
const validity = 24 * time.Hour

func newAuthority(dir string) (*authority, error) {
	a := &authority{dir: dir, next: 1}
	tmpl := a.template(pkix.Name{CommonName: "kubernetes"})
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	var err error
	if a.key, err = newKey(); err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("sign the authority's certificate: %w", err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		return nil, err
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a, os.WriteFile(filepath.Join(dir, "ca.crt"), a.pem, 0o600)
}

func newKey() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

func (a *authority) template(name pkix.Name) *x509.Certificate {
	a.next++
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: big.NewInt(a.next), Subject: name,
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(validity),
	}
}

// identity is a certificate with its key, as PEM and as files.
type identity struct {
	cert, key         []byte
	certFile, keyFile string
}

// server makes the certificate of a server that is reached by these names and addresses.
func (a *authority) server(file string, names []string, ips []net.IP) (identity, error) {
	tmpl := a.template(pkix.Name{CommonName: file})
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	tmpl.DNSNames, tmpl.IPAddresses = names, ips
	return a.sign(file, tmpl)
}

// client makes the certificate of a user, who is in a group unless that is empty.
func (a *authority) client(file, user, group string) (identity, error) {
	name := pkix.Name{CommonName: user}
	if group != "" {
		name.Organization = []string{group}
	}
	tmpl := a.template(name)
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	return a.sign(file, tmpl)
}

func (a *authority) sign(file string, tmpl *x509.Certificate) (identity, error) {
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	key, err := newKey()
	if err != nil {
		return identity{}, err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return identity{}, fmt.Errorf("sign the certificate %s: %w", file, err)
	}
	id := identity{certFile: filepath.Join(a.dir, file+".crt"), keyFile: filepath.Join(a.dir, file+".key")}
	id.cert = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if id.key, err = pemKey(key); err != nil {
		return id, err
	}
	if err := os.WriteFile(id.certFile, id.cert, 0o600); err != nil {
		return id, err
	}
	return id, os.WriteFile(id.keyFile, id.key, 0o600)
}

func pemKey(key crypto.Signer) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

// signingKey makes the key that signs tokens of ServiceAccounts, and its public half.
func (a *authority) signingKey() (private, public string, err error) {
	key, err := newKey()
	if err != nil {
		return "", "", err
	}
	b, err := pemKey(key)
	if err != nil {
		return "", "", err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return "", "", err
	}
	private, public = filepath.Join(a.dir, "sa.key"), filepath.Join(a.dir, "sa.pub")
	if err := os.WriteFile(private, b, 0o600); err != nil {
		return "", "", err
	}
	return private, public, os.WriteFile(public, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}), 0o600)
}
